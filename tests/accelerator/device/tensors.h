#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include "device.h"

namespace pretended {

inline bool on_card(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == identity.type; }
at::Tensor as_host(const at::Tensor& tensor);  // the same bytes as a CPU tensor that owns nothing
at::Tensor to_card(const at::Tensor& host, const at::Tensor& like);
void check_same_device(const at::Tensor& one, const at::Tensor& other);

}  // namespace pretended
