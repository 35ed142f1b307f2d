// Runs CUDA kernels on the host, a thread after the other. Where threads do something together they are fibers,
// which change places there. It stops the process where one of them is missing, or does something else.
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fibers.h"

Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr unsigned kLanes = 32, kMaxThreads = 1024;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr size_t kStack = 128 << 10;

enum class State { kRuns, kWaits, kEnded };

struct Thread {
  Fiber fiber{kStack};
  State state = State::kEnded;
  Operation operation = Operation::kBallot;
  uint32_t given = 0, result = 0;
  unsigned other = 0;
};

std::vector<std::unique_ptr<Thread>> threads;  // of a block; as many as any had
Fiber scheduler{0};
unsigned current = 0;
const std::function<void()>* body = nullptr;
// By kernel, and the function that launches it with the types that it is instantiated for.
std::map<std::string, std::map<std::string, int64_t>> launched;
int64_t launches = 0;
bool refused = false;

// ------------------------------------------------------------------ devices, as CUDA 12 and c10::cuda have them

// Tensors of the CPU, whose device has index -1, stand for those of this one; nothing has used device 0.
constexpr int kTensors = 1;
int current_device = 0;
uint32_t contexts = 0;  // bit i: device i has a context
int target = -1;        // c10: the device to come back to, where none was made current because it has no context

void use(int device) { contexts |= 1u << device; }

// ------------------------------------------------------------------ threads

void run_thread() {
  (*body)();
  threads[current]->state = State::kEnded;
  change(threads[current]->fiber, scheduler);
}

[[noreturn]] void stop(const char* why, unsigned thread) {
  fprintf(stderr, "cuda_on_host: %s (block %u, thread %u)\n", why, blockIdx.x, thread);
  abort();
}

// What all lanes of a warp have given becomes what each gets.
void combine(unsigned first) {
  uint32_t ballot = 0;
  const auto lane = [first](unsigned i) -> Thread& { return *threads[first + i]; };
  for (unsigned i = 0; i < kLanes; ++i) {
    if (lane(i).state == State::kEnded)
      stop("a thread has ended where its warp does something together", first + i);
    if (lane(i).operation != lane(0).operation)
      stop("the threads of a warp do different things together", first + i);
    if (lane(i).other != lane(0).other) stop("the threads of a warp shuffle differently", first + i);
    ballot |= (lane(i).given & 1u) << i;
  }
  if (lane(0).other >= kLanes) stop("a shuffle from beyond the warp", first);
  for (unsigned i = 0; i < kLanes; ++i) {
    lane(i).result = lane(i).operation == Operation::kBallot ? ballot : lane(i ^ lane(i).other).given;
    lane(i).state = State::kRuns;
  }
}

bool waits_for_block(const Thread& thread) {
  return thread.state == State::kWaits && thread.operation == Operation::kBarrier;
}

// Goes on where threads wait for each other; false where all have ended.
bool meet(unsigned count) {
  unsigned at_barrier = 0, ended = 0;
  for (unsigned first = 0; first < count; first += kLanes) {
    unsigned here = 0, over = 0;
    for (unsigned i = first; i < first + kLanes; ++i) {
      here += waits_for_block(*threads[i]);
      over += threads[i]->state == State::kEnded;
    }
    at_barrier += here;
    ended += over;
    if (here + over < kLanes) combine(first);  // some wait for their warp
  }
  if (at_barrier > 0 && ended > 0) stop("a thread has ended where its block waits for it", 0);
  if (at_barrier == count)
    for (unsigned i = 0; i < count; ++i) threads[i]->state = State::kRuns;
  return ended < count;
}

void run_block(unsigned count) {
  while (threads.size() < count) threads.push_back(std::make_unique<Thread>());
  for (unsigned i = 0; i < count; ++i) {
    threads[i]->fiber.begin(run_thread);
    threads[i]->state = State::kRuns;
  }
  do {
    for (current = 0; current < count; ++current) {
      if (threads[current]->state != State::kRuns) continue;
      threadIdx.x = current;
      change(scheduler, threads[current]->fiber);
    }
  } while (meet(count));
}

}  // namespace

uint32_t together(Operation operation, uint32_t mask, uint32_t value, unsigned other) {
  if (body == nullptr) stop("this kernel was taken for one whose threads do not meet", threadIdx.x);
  if (mask != kWholeWarp) stop("the emulator takes whole warps only", current);
  Thread& thread = *threads[current];
  thread.operation = operation;
  thread.given = value;
  thread.other = other;
  thread.state = State::kWaits;
  change(thread.fiber, scheduler);
  return thread.result;
}

void launch(const char* kernel, const char* launcher, unsigned grid, unsigned block, bool together,
            const std::function<void()>& thread) {
  ++launches;
  ++launched[kernel][launcher];
  use(current_device);
  refused = grid == 0 || block == 0 || block > kMaxThreads || block % kLanes != 0;
  if (refused) return;
  body = together ? &thread : nullptr;
  gridDim.x = grid;
  blockDim.x = block;
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
    if (together)
      run_block(block);
    else
      for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) thread();
  }
}

}  // namespace emulator

cudaError_t cudaGetLastError() {
  const bool error = emulator::refused;
  emulator::refused = false;
  return error ? 1 : cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = emulator::current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  emulator::current_device = device < 0 ? emulator::kTensors : device;
  emulator::use(emulator::current_device);
  return cudaSuccess;
}

#define EXPORTED extern "C" __attribute__((visibility("default")))

// ------------------------------------------------------------------ of libtorch_cuda.so, which is not there

EXPORTED int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

// c10::cuda::ExchangeDevice.
EXPORTED int32_t aoti_torch_create_cuda_guard(int32_t device, void** guard) {
  const int before = emulator::target >= 0 ? emulator::target : emulator::current_device;
  emulator::target = -1;
  if (device < 0) device = emulator::kTensors;
  if (device != emulator::current_device) cudaSetDevice(device);
  *guard = new int(before);
  return 0;
}

// c10::cuda::MaybeSetDevice.
EXPORTED int32_t aoti_torch_delete_cuda_guard(void* guard) {
  const int before = *static_cast<int*>(guard);
  delete static_cast<int*>(guard);
  if (emulator::contexts >> before & 1u) {
    if (before != emulator::current_device) cudaSetDevice(before);
  } else {
    emulator::target = before;
  }
  return 0;
}

// ------------------------------------------------------------------ for who wants to know

// That kernels did run.
EXPORTED int64_t cuda_on_host_launches() { return emulator::launches; }
// Which: a line for each kernel, with its launches and how many variants of it they were.
EXPORTED const char* cuda_on_host_launched() {
  static std::string text;
  text.clear();
  for (const auto& [kernel, variants] : emulator::launched) {
    int64_t count = 0;
    for (const auto& [launcher, times] : variants) count += times;
    text += kernel + ' ' + std::to_string(count) + ' ' + std::to_string(variants.size()) + '\n';
  }
  return text.c_str();
}
// On which devices: bit i is of device i, of which tensors are on device 1.
EXPORTED uint32_t cuda_on_host_contexts() { return emulator::contexts; }
