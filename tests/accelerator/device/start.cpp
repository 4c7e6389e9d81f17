// The functions that Python calls (ctypes): registers the device, which must happen before `import torch` as CUDA.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "device.h"

namespace pretended {

Identity identity;

namespace {
card_machine* machine = nullptr;
int numbers[CARDS_MOST];  // of the visible devices in the machine's order
}  // namespace

card& card_of(c10::DeviceIndex index) { return machine->cards[numbers[index]]; }

void check_alive(c10::DeviceIndex index) {
  if (!card_of(index).fault) return;
  constexpr int kIllegalAddress = 700;  // cudaErrorIllegalAddress
  throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, kIllegalAddress,
                              "CUDA error: an illegal memory access was encountered (a pretended card)");
}

}  // namespace pretended

// Registers the cards `visible[0..count)` of the machine in `path`. Returns 0, or errno where the file cannot be mapped.
extern "C" int pretended_start(const char* path, int as_cuda, const int* visible, int count) {
  using namespace pretended;
  int file = open(path, O_RDWR);
  if (file < 0) return errno;
  void* mapped = mmap(nullptr, sizeof(card_machine), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) return errno;
  machine = static_cast<card_machine*>(mapped);
  std::memcpy(numbers, visible, count * sizeof(int));
  identity.count = count;
  if (as_cuda) identity.type = c10::DeviceType::CUDA, identity.key = c10::DispatchKey::CUDA;
  register_memory();
  register_pinned_memory();
  register_guard();
  register_hooks(as_cuda);
  register_tensors();
  register_operators();
  return 0;
}

extern "C" int64_t pretended_late_copies(int index) { return pretended::waiting(index); }
