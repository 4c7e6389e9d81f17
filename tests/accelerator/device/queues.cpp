// Queues of late work, one a stream. Work runs when a stream, an event or the device is waited for, in order.
#include "device.h"

#include <deque>

namespace pretended {
namespace {

struct Queue {
  std::deque<std::function<void()>> works;
  uint64_t queued = 0, done = 0;
};
std::map<StreamKey, Queue> queues;
c10::StreamId last_stream = 0;
thread_local std::map<c10::DeviceIndex, c10::StreamId> current_streams;

}  // namespace

std::recursive_mutex& device_lock() {
  static auto* lock = new std::recursive_mutex;
  return *lock;
}

c10::Stream current_stream(c10::DeviceIndex index) {
  return c10::Stream(c10::Stream::UNSAFE, device_at(index), current_streams[index]);
}

void set_current_stream(const c10::Stream& stream) { current_streams[stream.device_index()] = stream.id(); }

c10::Stream new_stream(c10::DeviceIndex index) {
  Locked hold(device_lock());
  return c10::Stream(c10::Stream::UNSAFE, device_at(index), ++last_stream);
}

void put_off(const StreamKey& stream, std::function<void()> work) {
  Locked hold(device_lock());
  auto& queue = queues[stream];
  queue.works.push_back(std::move(work));
  ++queue.queued;
}

uint64_t queued(const StreamKey& stream) {
  Locked hold(device_lock());
  return queues[stream].queued;
}

bool is_done(const StreamKey& stream, uint64_t ticket) {
  Locked hold(device_lock());
  return queues[stream].done >= ticket;
}

bool poll(const StreamKey& stream, uint64_t ticket) {
  Locked hold(device_lock());
  if (is_done(stream, ticket)) return true;
  run_until(stream, queues[stream].done + 1);
  return false;
}

void run_until(const StreamKey& stream, uint64_t ticket) {
  Locked hold(device_lock());
  auto& queue = queues[stream];
  while (queue.done < ticket && !queue.works.empty()) {
    auto work = std::move(queue.works.front());
    queue.works.pop_front();
    ++queue.done;  // first: the work may wait for this queue itself
    work();
  }
}

void run_all(const StreamKey& stream) {
  Locked hold(device_lock());
  run_until(stream, queues[stream].queued);
}

void run_all(c10::DeviceIndex index) {
  Locked hold(device_lock());
  for (auto& [key, queue] : queues)
    if (key.first == index) run_until(key, queue.queued);
}

int64_t waiting(c10::DeviceIndex index) {
  Locked hold(device_lock());
  int64_t found = 0;
  for (auto& [key, queue] : queues)
    if (key.first == index) found += queue.works.size();
  return found;
}

}  // namespace pretended
