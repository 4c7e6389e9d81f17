// torch's allocators of the device and of pinned host memory.
#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <cstdlib>
#include <map>

#include "pool.h"

namespace pretended {
namespace {

using c10::DeviceIndex;

struct Owner {
  DeviceIndex index;
  Block* block;
};

struct DeviceMemory final : c10::DeviceAllocator {
  static void release(void* context) {
    Locked hold(device_lock());
    auto* owner = static_cast<Owner*>(context);
    pool_of(owner->index).release(owner->block);
    delete owner;
  }
  at::DataPtr allocate(size_t bytes) override {
    Locked hold(device_lock());
    auto index = current_device();
    if (bytes == 0) return {nullptr, device_at(index)};
    auto* block = pool_of(index).allocate(bytes);
    return {block->start, new Owner{index, block}, &release, device_at(index)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    Locked hold(device_lock());
    for (DeviceIndex each = 0; each < identity.count; ++each) pool_of(each).empty_cache();
  }
  void recordStream(const at::DataPtr& data, c10::Stream stream) override {
    Locked hold(device_lock());
    if (data.get()) pool_of(data.device().index()).record(data.get(), key_of(stream));
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex index) override {
    Locked hold(device_lock());
    return pool_of(index).stats;
  }
  void resetAccumulatedStats(DeviceIndex index) override { each_stat(index, &c10::CachingAllocator::Stat::reset_accumulated); }
  void resetPeakStats(DeviceIndex index) override { each_stat(index, &c10::CachingAllocator::Stat::reset_peak); }
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex index) override {
    Locked hold(device_lock());
    check_alive(index);
    return {pool_of(index).free_bytes(), card_of(index).capacity_bytes};
  }

 private:
  static void each_stat(DeviceIndex index, void (c10::CachingAllocator::Stat::*reset)()) {
    Locked hold(device_lock());
    auto& stats = pool_of(index).stats;
    for (auto* stat : {&stats.allocation, &stats.segment, &stats.active, &stats.inactive_split, &stats.allocated_bytes,
                       &stats.reserved_bytes, &stats.active_bytes, &stats.inactive_split_bytes, &stats.requested_bytes})
      for (auto& part : *stat) (part.*reset)();
  }
};

std::map<const char*, size_t> pinned;

struct PinnedMemory final : at::HostAllocator {
  static void release(void* start) {  // torch keeps a block until the copies that use it are done
    Locked hold(device_lock());
    for (DeviceIndex each = 0; each < identity.count; ++each) run_all(each);
    pinned.erase(static_cast<char*>(start));
    std::free(start);
  }
  at::DataPtr allocate(size_t bytes) override {
    Locked hold(device_lock());
    if (bytes == 0) return {nullptr, at::kCPU};
    auto* start = static_cast<char*>(std::aligned_alloc(512, (bytes + 511) / 512 * 512));
    TORCH_CHECK_WITH(OutOfMemoryError, start, "no host memory to pin");
    pinned[start] = bytes;
    return {start, start, &release, at::kCPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};

}  // namespace

bool is_pinned(const void* pointer) {
  Locked hold(device_lock());
  auto after = pinned.upper_bound(static_cast<const char*>(pointer));
  if (after == pinned.begin()) return false;
  auto& [start, bytes] = *std::prev(after);
  return static_cast<const char*>(pointer) < start + bytes;
}

void register_memory() { c10::SetAllocator(identity.type, new DeviceMemory); }
void register_pinned_memory() { at::setHostAllocator(identity.type, new PinnedMemory, 0); }

}  // namespace pretended
