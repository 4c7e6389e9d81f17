// One card's memory in one process: a caching allocator after torch's (c10/cuda/CUDACachingAllocator.cpp).
#pragma once

#include <c10/core/CachingDeviceAllocator.h>

#include <set>
#include <vector>

#include "device.h"

namespace pretended {

struct Block {
  char* start;
  size_t bytes;
  bool small;
  bool used = false;
  Block *before = nullptr, *after = nullptr;  // neighbours in its segment
  std::map<StreamKey, uint64_t> readers;      // record_stream: streams, and the tickets to wait for
};

// As torch does: sizes are rounded to 512 bytes. Blocks of at most 1 MiB come from segments of 2 MiB, larger ones from
// segments of 20 MiB, or from 10 MiB on from a segment of their own. Blocks are split, and merged when freed.
class Pool {
 public:
  explicit Pool(c10::DeviceIndex index) : index_(index) {}

  Block* allocate(size_t asked);  // OutOfMemoryError, AcceleratorError
  void release(Block* block);     // waits for the streams recorded on it
  void record(void* start, const StreamKey& stream);
  void empty_cache();
  size_t free_bytes() const;  // of the card, for every process
  c10::CachingDeviceAllocator::DeviceStats stats;

 private:
  struct BySize {
    bool operator()(const Block* a, const Block* b) const {
      return std::tie(a->bytes, a->start) < std::tie(b->bytes, b->start);
    }
  };

  Block* find(size_t bytes, bool small);
  Block* find_or_reserve(size_t bytes, bool small);
  void split(Block* block, size_t bytes);
  void put_back(Block* block);
  void merge(Block* block, Block* neighbour);
  void put_back_deferred();
  static bool is_read(const Block* block);
  void count(c10::CachingAllocator::StatArray& stat, const Block* block, int64_t amount);
  void count_split(const Block* block, int sign);  // an unused part of a split segment
  void tell_use();
  [[noreturn]] void out_of_memory(size_t asked);

  c10::DeviceIndex index_;
  bool has_context_ = false;
  std::set<Block*, BySize> free_[2];  // large, small
  std::map<void*, Block*> used_;
  std::vector<Block*> deferred_;  // freed, but still read by a stream
};

Pool& pool_of(c10::DeviceIndex index);

}  // namespace pretended
