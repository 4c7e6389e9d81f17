// What torch asks about the current device, streams and events.
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <chrono>

#include "pool.h"

namespace pretended {
namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::Stream;

struct Event {
  StreamKey stream;
  uint64_t ticket;
  std::chrono::steady_clock::time_point at;
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static DeviceIndex index_of(Device device) { return device.has_index() ? device.index() : current_device(); }

  c10::DeviceType type() const override { return identity.type; }
  Device exchangeDevice(Device device) const override {
    return device_at(std::exchange(current_device(), device.index()));
  }
  Device getDevice() const override { return device_at(current_device()); }
  void setDevice(Device device) const override {
    pool_of(device.index());  // raises for an index that does not exist
    current_device() = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override { current_device() = device.index(); }
  DeviceIndex deviceCount() const noexcept override { return identity.count; }
  c10::DeviceCapability getDeviceCapability(Device) const override { return {}; }

  Stream getStream(Device device) const override { return current_stream(index_of(device)); }
  Stream getDefaultStream(Device device) const override { return Stream(Stream::DEFAULT, device_at(index_of(device))); }
  Stream getNewStream(Device device, int) const override { return new_stream(index_of(device)); }
  Stream getStreamFromGlobalPool(Device device, bool) const override { return new_stream(index_of(device)); }
  Stream exchangeStream(Stream stream) const override {
    auto before = current_stream(stream.device_index());
    set_current_stream(stream);
    return before;
  }
  bool queryStream(const Stream& stream) const override {
    check_alive(stream.device_index());
    return poll(key_of(stream), queued(key_of(stream)));
  }
  void synchronizeStream(const Stream& stream) const override {
    check_alive(stream.device_index());
    run_all(key_of(stream));
  }
  void synchronizeDevice(DeviceIndex index) const override {
    check_alive(index);
    run_all(index);
  }
  void recordDataPtrOnStream(const at::DataPtr& data, const Stream& stream) const override {
    Locked hold(device_lock());
    if (data.get()) pool_of(data.device().index()).record(data.get(), key_of(stream));
  }

  void record(void** event, const Stream& stream, DeviceIndex, c10::EventFlag) const override {
    check_alive(stream.device_index());
    delete static_cast<Event*>(*event);
    *event = new Event{key_of(stream), queued(key_of(stream)), std::chrono::steady_clock::now()};
  }
  void block(void* event, const Stream& stream) const override {
    if (!event) return;
    auto recorded = *static_cast<Event*>(event);
    put_off(key_of(stream), [recorded] { run_until(recorded.stream, recorded.ticket); });
  }
  bool queryEvent(void* event) const override {
    auto* recorded = static_cast<Event*>(event);
    return !recorded || poll(recorded->stream, recorded->ticket);
  }
  void synchronizeEvent(void* event) const override {
    auto* recorded = static_cast<Event*>(event);
    if (!recorded) return;
    check_alive(recorded->stream.first);
    run_until(recorded->stream, recorded->ticket);
  }
  void destroyEvent(void* event, DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  double elapsedTime(void* from, void* to, DeviceIndex) const override {
    auto passed = static_cast<Event*>(to)->at - static_cast<Event*>(from)->at;
    return std::chrono::duration<double, std::milli>(passed).count();
  }
};

}  // namespace

c10::DeviceIndex& current_device() {
  thread_local DeviceIndex index = 0;
  return index;
}

void register_guard() { c10::impl::DeviceGuardImplRegistrar(identity.type, new Guard); }

}  // namespace pretended
