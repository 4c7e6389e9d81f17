// Making, viewing and copying tensors of the device.
#include <ATen/EmptyTensor.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/library.h>

#include <cstring>

#include "tensors.h"

namespace pretended {
namespace {

using at::Tensor;
using Ints = c10::IntArrayRef;
using Dtype = std::optional<at::ScalarType>;
using Place = std::optional<c10::Device>;

c10::Allocator* memory() { return c10::GetAllocator(identity.type); }

Tensor empty(Ints size, Dtype dtype, std::optional<at::Layout>, Place device, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_generic(size, memory(), c10::DispatchKeySet(identity.key), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(Ints size, Ints stride, Dtype dtype, std::optional<at::Layout>, Place device, std::optional<bool>) {
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_strided_generic(size, stride, memory(), c10::DispatchKeySet(identity.key),
                                           c10::dtype_or_default(dtype));
}

const Tensor& resize_(const Tensor& self, Ints size, std::optional<at::MemoryFormat> format) {
  if (self.sizes() == size) return self;  // a view keeps its strides
  const c10::DeviceGuard guard(self.device());
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  if (format && *format != at::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  size_t bytes = (impl->numel() + impl->storage_offset()) * impl->itemsize();
  auto storage = self.storage();
  if (impl->numel() && bytes > storage.nbytes()) {
    auto data = memory()->allocate(bytes);
    if (storage.nbytes()) std::memcpy(data.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(bytes);
  }
  return self;
}

// A CPU tensor over the same bytes that keeps nothing alive: what must outlive a late copy is the caller's to see to.
Tensor loose(const Tensor& tensor) {
  auto* impl = tensor.unsafeGetTensorImpl();
  auto made = at::for_blob(impl->mutable_data(), tensor.sizes())
                  .strides(tensor.strides())
                  .options(tensor.options().device(at::kCPU).pinned_memory(false))
                  .target_device(at::kCPU)
                  .make_tensor();
  made._set_conj(tensor.is_conj());
  made._set_neg(tensor.is_neg());
  return made;
}

// Copies between the device and pinned memory that may be late are late. All others wait for the stream first.
Tensor& copy_(Tensor& self, const Tensor& from, bool non_blocking) {
  if (self.is_same(from) || self.numel() == 0) return self;
  auto source = from.expand(self.sizes());
  auto index = (on_card(self) ? self : from).device().index();
  check_alive(index);
  bool crosses = on_card(self) != on_card(from);
  auto work = [to = loose(self), source = loose(source)]() mutable {
    at::NoGradGuard no_grad;
    to.copy_(source);
  };
  auto stream = key_of(current_stream(index));
  if (non_blocking && crosses && is_pinned((on_card(self) ? from : self).const_data_ptr())) {
    put_off(stream, work);
    return self;
  }
  if (!crosses && self.device() != from.device()) run_all(from.device().index());
  run_all(stream);
  work();
  return self;
}

Tensor copy_from(const Tensor& self, const Tensor& to, bool non_blocking) {
  auto target = to;
  return copy_(target, self, non_blocking);
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

at::Scalar local_scalar(const Tensor& self) {
  check_alive(self.device().index());
  run_all(key_of(current_stream(self.device().index())));
  return loose(self).item();
}

void record_stream(Tensor& self, c10::Stream stream) {
  static_cast<c10::DeviceAllocator*>(memory())->recordStream(self.storage().data_ptr(), stream);
}

Tensor as_strided(const Tensor& self, Ints size, Ints stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}
Tensor view(const Tensor& self, Ints size) { return at::native::view(self, size); }
Tensor reshape_alias(const Tensor& self, Ints size, Ints stride) { return at::native::_reshape_alias(self, size, stride); }
Tensor unfold(const Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return at::native::unfold(self, dim, size, step);
}
Tensor view_as_real(const Tensor& self) { return at::native::view_as_real(self); }
Tensor view_as_complex(const Tensor& self) { return at::native::view_as_complex(self); }

Tensor& set_tensor(Tensor& self, const Tensor& source) { return at::native::set_tensor_(self, source); }
Tensor& set_storage(Tensor& self, at::Storage source) { return at::native::set_(self, std::move(source)); }
Tensor& set_part(Tensor& self, at::Storage source, int64_t offset, Ints size, Ints stride) {
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}
Tensor& set_nothing(Tensor& self) {  // frees what the tensor had
  c10::Storage none(c10::Storage::use_byte_size_t(), 0, memory()->allocate(0), memory(), true);
  return at::native::set_storage_cpu_(self, std::move(none), 0, {0}, {});
}

}  // namespace

Tensor as_host(const Tensor& tensor) { return on_card(tensor) ? loose(tensor) : tensor; }

Tensor to_card(const Tensor& host, const Tensor& like) {
  if (!host.defined()) return host;
  auto made = at::empty_strided(host.sizes(), host.strides(), host.options().device(like.device()));
  loose(made).copy_(host);
  return made;
}

void check_same_device(const Tensor& one, const Tensor& other) {
  TORCH_CHECK(one.device() == other.device(), "Expected all tensors to be on the same device, but found at least two "
              "devices, ", one.device(), " and ", other.device(), "!");
}

void register_tensors() {
  auto* aten = new torch::Library(torch::Library::IMPL, "aten", identity.key, __FILE__, __LINE__);
  aten->impl("empty.memory_format", &empty);
  aten->impl("empty_strided", &empty_strided);
  aten->impl("resize_", &resize_);
  aten->impl("copy_", &copy_);
  aten->impl("_copy_from", &copy_from);
  aten->impl("_copy_from_and_resize", &copy_from_and_resize);
  aten->impl("_local_scalar_dense", &local_scalar);
  aten->impl("record_stream", &record_stream);
  aten->impl("as_strided", &as_strided);
  aten->impl("view", &view);
  aten->impl("_reshape_alias", &reshape_alias);
  aten->impl("unfold", &unfold);
  aten->impl("view_as_real", &view_as_real);
  aten->impl("view_as_complex", &view_as_complex);
  aten->impl("set_.source_Tensor", &set_tensor);
  aten->impl("set_.source_Storage", &set_storage);
  aten->impl("set_.source_Storage_storage_offset", &set_part);
  aten->impl("set_", &set_nothing);
}

}  // namespace pretended
