// A pretended accelerator: its memory is host memory, but limited, counted and apart from the CPU's.
//
// Operators run on the CPU, at once. Real is what a program can get wrong around them:
//   memory    a caching allocator over a capacity that it shares with other processes (memory.cpp);
//   order     copies to and from pinned memory are late: they run when something waits for them (queues.cpp);
//   lifetime  a freed block is used again at once, so a late copy that still reads it must be recorded on it.
// The device is registered at run time (start.cpp): as torch's CUDA, or as the PrivateUse1 device.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/DispatchKey.h>
#include <c10/core/Stream.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "cards.h"

namespace pretended {

// ---- identity (start.cpp): set once, before torch asks
struct Identity {
  c10::DeviceType type = c10::DeviceType::PrivateUse1;
  c10::DispatchKey key = c10::DispatchKey::PrivateUse1;
  c10::DeviceIndex count = 0;
};
extern Identity identity;
card& card_of(c10::DeviceIndex index);  // shared with other processes
void check_alive(c10::DeviceIndex index);  // AcceleratorError after a fault

inline c10::Device device_at(c10::DeviceIndex index) { return {identity.type, index}; }
c10::DeviceIndex& current_device();  // of this thread

// One lock for all: a pretended device need not be fast.
std::recursive_mutex& device_lock();
using Locked = std::lock_guard<std::recursive_mutex>;

// ---- queues of late work, one a stream (queues.cpp)
using StreamKey = std::pair<c10::DeviceIndex, c10::StreamId>;
inline StreamKey key_of(const c10::Stream& stream) { return {stream.device_index(), stream.id()}; }

c10::Stream current_stream(c10::DeviceIndex index);
void set_current_stream(const c10::Stream& stream);
c10::Stream new_stream(c10::DeviceIndex index);
void put_off(const StreamKey& stream, std::function<void()> work);
uint64_t queued(const StreamKey& stream);                    // works ever put off: a ticket for `run_until`
bool is_done(const StreamKey& stream, uint64_t ticket);
bool poll(const StreamKey& stream, uint64_t ticket);         // is_done; if not, runs one work, so that polling ends
void run_until(const StreamKey& stream, uint64_t ticket);
void run_all(const StreamKey& stream);
void run_all(c10::DeviceIndex index);
int64_t waiting(c10::DeviceIndex index);

// ---- registration, each in its file
void register_memory();
void register_pinned_memory();
void register_guard();
void register_tensors();
void register_operators();
void register_hooks(bool as_cuda);
bool is_pinned(const void* pointer);

}  // namespace pretended
