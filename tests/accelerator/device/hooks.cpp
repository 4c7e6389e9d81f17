// What torch asks about a kind of device: one class for CUDA, one for PrivateUse1.
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>

#include <cstring>
#include <vector>

#include "pool.h"
#include "randoms.h"

namespace pretended {
namespace {

using c10::DeviceIndex;

template <typename Base>
struct Hooks : Base {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return identity.count > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return identity.count; }
  void setCurrentDevice(DeviceIndex index) const override { current_device() = index; }
  DeviceIndex getCurrentDevice() const override { return current_device(); }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return std::exchange(current_device(), index); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return index < 0 ? current_device() : std::exchange(current_device(), index);
  }
  bool isPinnedPtr(const void* pointer) const override { return is_pinned(pointer); }
  at::Allocator* getPinnedMemoryAllocator() const override { return at::getHostAllocator(identity.type); }
  c10::Device getDeviceFromPtr(void*) const override { return device_at(current_device()); }
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override { return default_randoms(index); }
  at::Generator getNewGenerator(DeviceIndex index) const override { return new_randoms(index); }
};

struct CudaHooks final : Hooks<at::CUDAHooksInterface> {
  bool hasCUDA() const override { return true; }
  DeviceIndex current_device() const override { return pretended::current_device(); }
  int getNumGPUs() const override { return identity.count; }
  at::Allocator* getCUDADeviceAllocator() const override { return c10::GetAllocator(identity.type); }
  void deviceSynchronize(DeviceIndex index) const override {
    check_alive(index);
    run_all(index);
  }
};

struct PrivateHooks final : Hooks<at::PrivateUse1HooksInterface> {
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto data = c10::GetAllocator(identity.type)->allocate(bytes);
    std::memcpy(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(bytes);
  }
};

bool next_is_default = false;

}  // namespace

const at::Generator& default_randoms(DeviceIndex index) {
  static auto* all = [] {
    auto* made = new std::vector<at::Generator>;
    for (DeviceIndex each = 0; each < CARDS_MOST; ++each) made->push_back(at::make_generator<Randoms>(each));
    return made;
  }();
  return all->at(index < 0 ? current_device() : index);
}

at::Generator new_randoms(DeviceIndex index) {
  if (std::exchange(next_is_default, false)) return default_randoms(index);
  return at::make_generator<Randoms>(index < 0 ? current_device() : index);
}

void register_hooks(bool as_cuda) {
  if (as_cuda) {
    at::CUDAHooksRegistry()->Register("CUDAHooks", [](at::CUDAHooksArgs) {
      return std::unique_ptr<at::CUDAHooksInterface>(new CudaHooks);
    });
  } else {
    at::RegisterPrivateUse1HooksInterface(new PrivateHooks);
  }
}

}  // namespace pretended

// Python's torch.Generator can only wrap a generator that torch has made: lend it the device's default one.
extern "C" void pretended_next_generator_is_default() { pretended::next_is_default = true; }
