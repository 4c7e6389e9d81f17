#include "pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace pretended {
namespace {

constexpr size_t kMiB = 1 << 20;
constexpr size_t kGrain = 512, kSmallest = kMiB, kSmallSegment = 2 * kMiB, kLargeSegment = 20 * kMiB;
constexpr size_t round_up(size_t bytes, size_t grain) { return (bytes + grain - 1) / grain * grain; }

size_t segment_bytes(size_t bytes, bool small) {
  if (small) return kSmallSegment;
  return bytes < 10 * kMiB ? kLargeSegment : round_up(bytes, 2 * kMiB);
}

}  // namespace

Block* Pool::allocate(size_t asked) {
  check_alive(index_);
  has_context_ = true;
  put_back_deferred();
  size_t bytes = std::max(kGrain, round_up(asked, kGrain));
  bool small = bytes <= kSmallest;
  auto& fail_in = card_of(index_).fail_in;
  bool fails = fail_in >= 0 && fail_in-- == 0;
  Block* block = fails ? nullptr : find_or_reserve(bytes, small);
  tell_use();
  if (!block) out_of_memory(asked);
  split(block, bytes);
  block->used = true;
  used_[block->start] = block;
  count(stats.allocation, block, 1), count(stats.active, block, 1);
  count(stats.allocated_bytes, block, block->bytes), count(stats.active_bytes, block, block->bytes);
  count(stats.requested_bytes, block, asked);
  if (card_of(index_).poison) std::memset(block->start, 0xFF, block->bytes);
  return block;
}

void Pool::release(Block* block) {
  used_.erase(block->start);
  count(stats.allocation, block, -1), count(stats.allocated_bytes, block, -int64_t(block->bytes));
  if (is_read(block)) deferred_.push_back(block);
  else put_back(block);
}

void Pool::record(void* start, const StreamKey& stream) {
  if (auto found = used_.find(start); found != used_.end()) found->second->readers[stream] = queued(stream);
}

void Pool::empty_cache() {  // freeing device memory waits for the device
  check_alive(index_);
  run_all(index_);
  put_back_deferred();
  for (auto& blocks : free_)
    for (auto each = blocks.begin(); each != blocks.end();) {
      Block* block = *each;
      if (block->before || block->after) {
        ++each;
        continue;
      }
      each = blocks.erase(each);
      munmap(block->start, block->bytes);
      count(stats.segment, block, -1), count(stats.reserved_bytes, block, -int64_t(block->bytes));
      ++stats.num_device_free;
      delete block;
    }
  tell_use();
}

size_t Pool::free_bytes() const {
  auto& shared = card_of(index_);
  auto* first = shared.processes;
  size_t used = shared.ballast_bytes;
  for (auto* each = first; each != first + CARDS_MOST_PROCESSES; ++each)
    if (each->pid != getpid() && card_process_lives(each)) used += each->used_bytes;
  used += stats.reserved_bytes[0].current + (has_context_ ? shared.context_bytes : 0);
  return shared.capacity_bytes > used ? shared.capacity_bytes - used : 0;
}

void Pool::tell_use() {
  auto& shared = card_of(index_);
  card_process* mine = nullptr;
  for (auto& each : shared.processes) {
    if (each.pid == getpid()) mine = &each;
    else if (each.pid && !card_process_lives(&each)) each = {0, 0};
  }
  for (auto& each : shared.processes)
    if (!mine && !each.pid) mine = &each;
  TORCH_CHECK(mine, "too many processes on a pretended card");
  *mine = {getpid(), stats.reserved_bytes[0].current + shared.context_bytes};
}

Block* Pool::find(size_t bytes, bool small) {
  Block wanted{nullptr, bytes, small};
  auto found = free_[small].lower_bound(&wanted);
  if (found == free_[small].end()) return nullptr;
  Block* block = *found;
  free_[small].erase(found);
  count_split(block, -1);
  return block;
}

Block* Pool::find_or_reserve(size_t bytes, bool small) {
  if (auto* block = find(bytes, small)) return block;
  size_t reserved = segment_bytes(bytes, small);
  if (reserved > free_bytes()) {
    ++stats.num_alloc_retries;
    empty_cache();
    if (auto* block = find(bytes, small)) return block;  // one that a stream had read until now
  }
  if (reserved > free_bytes()) return nullptr;
  void* start = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  auto* block = new Block{static_cast<char*>(start), reserved, small};
  count(stats.segment, block, 1), count(stats.reserved_bytes, block, reserved);
  ++stats.num_device_alloc;
  return block;
}

void Pool::split(Block* block, size_t bytes) {
  size_t rest = block->bytes - bytes;
  if (block->small ? rest < kGrain : rest <= kSmallest) return;
  auto* remainder = new Block{block->start + bytes, rest, block->small};
  remainder->before = block, remainder->after = block->after;
  if (remainder->after) remainder->after->before = remainder;
  block->after = remainder, block->bytes = bytes;
  free_[block->small].insert(remainder);
  count_split(remainder, 1);
}

void Pool::put_back(Block* block) {
  block->used = false;
  block->readers.clear();
  count(stats.active, block, -1), count(stats.active_bytes, block, -int64_t(block->bytes));
  for (Block* neighbour : {block->before, block->after})
    if (neighbour && !neighbour->used) merge(block, neighbour);
  free_[block->small].insert(block);
  count_split(block, 1);
}

void Pool::merge(Block* block, Block* neighbour) {
  // A neighbour that was freed, but is still read by a stream, is not in the set: it stays apart.
  if (!free_[block->small].erase(neighbour)) return;
  count_split(neighbour, -1);
  if (neighbour == block->before) block->start = neighbour->start, block->before = neighbour->before;
  else block->after = neighbour->after;
  block->bytes += neighbour->bytes;
  if (block->before) block->before->after = block;
  if (block->after) block->after->before = block;
  delete neighbour;
}

void Pool::put_back_deferred() {
  for (auto waiting = std::exchange(deferred_, {}); Block* block : waiting)
    if (is_read(block)) deferred_.push_back(block);
    else put_back(block);
}

bool Pool::is_read(const Block* block) {
  return std::any_of(block->readers.begin(), block->readers.end(),
                     [](auto& reader) { return !is_done(reader.first, reader.second); });
}

void Pool::count(c10::CachingAllocator::StatArray& stat, const Block* block, int64_t amount) {
  for (auto which : {0, block->small ? 1 : 2})  // all, small pool, large pool
    if (amount < 0) stat[which].decrease(-amount);
    else stat[which].increase(amount);
}

void Pool::count_split(const Block* block, int sign) {
  if (!block->before && !block->after) return;
  count(stats.inactive_split, block, sign);
  count(stats.inactive_split_bytes, block, sign * int64_t(block->bytes));
}

void Pool::out_of_memory(size_t asked) {
  ++stats.num_ooms;
  TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", asked, " bytes. Pretended card ",
                   int(index_), " has a total capacity of ", card_of(index_).capacity_bytes, " bytes of which ",
                   free_bytes(), " are free. Other processes hold ", card_of(index_).ballast_bytes, ". ",
                   stats.allocated_bytes[0].current, " bytes are allocated by PyTorch, and ",
                   stats.reserved_bytes[0].current, " are reserved.");
}

Pool& pool_of(c10::DeviceIndex index) {
  static auto* pools = [] {
    auto* made = new std::vector<Pool>;
    for (c10::DeviceIndex each = 0; each < CARDS_MOST; ++each) made->emplace_back(each);
    return made;
  }();
  TORCH_CHECK(index >= 0 && index < identity.count, "invalid device ordinal ", int(index));
  return (*pools)[index];
}

}  // namespace pretended
