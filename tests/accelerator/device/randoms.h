// The device's random numbers: a CPU generator of its own behind each of the device's generators.
#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include "device.h"

namespace pretended {

struct Randoms final : c10::GeneratorImpl {
  explicit Randoms(c10::DeviceIndex index, at::Generator host = at::detail::createCPUGenerator())
      : GeneratorImpl(device_at(index), c10::DispatchKeySet(identity.key)), host(std::move(host)) {}

  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "a pretended card's generator has no offset"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "a pretended card's generator has no offset"); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.unsafeGetGeneratorImpl()->seed(); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  Randoms* clone_impl() const override { return new Randoms(device_.index(), host.clone()); }

  at::Generator host;
};

at::Generator new_randoms(c10::DeviceIndex index);
const at::Generator& default_randoms(c10::DeviceIndex index);

}  // namespace pretended
