// Runs CUDA kernels on the host, a thread after the other. Where the threads of a warp do something together they
// are fibers, which change places there. It stops the process if one of them is missing.
#include <ucontext.h>

#include <cstdio>
#include <memory>

#include "cuda_runtime.h"

Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr unsigned kLanes = 32, kMaxThreads = 1024;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr size_t kStack = 128 << 10;

enum class State { kRuns, kWaits, kEnded };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::kEnded;
  Operation operation = Operation::kBallot;
  uint32_t given = 0, result = 0;
  unsigned other = 0;
};

Fiber fibers[kLanes];
ucontext_t scheduler;
unsigned current = 0;
const std::function<void()>* body = nullptr;
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

void run_fiber() {
  (*body)();
  fibers[current].state = State::kEnded;
  swapcontext(&fibers[current].context, &scheduler);
}

[[noreturn]] void stop(const char* why, unsigned lane) {
  fprintf(stderr, "cuda_on_host: %s (block %u, thread %u)\n", why, blockIdx.x,
          threadIdx.x / kLanes * kLanes + lane);
  abort();
}

// What all lanes have given becomes what each gets.
void combine() {
  uint32_t ballot = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const Fiber& fiber = fibers[lane];
    if (fiber.state == State::kEnded) stop("a thread has ended where its warp does something together", lane);
    if (fiber.operation != fibers[0].operation) stop("the threads of a warp do different things together", lane);
    ballot |= (fiber.given & 1u) << lane;
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    Fiber& fiber = fibers[lane];
    if ((lane ^ fiber.other) >= kLanes) stop("a shuffle from beyond the warp", lane);
    fiber.result = fiber.operation == Operation::kBallot ? ballot : fibers[lane ^ fiber.other].given;
  }
  for (Fiber& fiber : fibers) fiber.state = State::kRuns;
}

void run_warp(unsigned first_thread) {
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
    fiber.state = State::kRuns;
  }
  for (;;) {
    bool any_waits = false;
    for (current = 0; current < kLanes; ++current) {
      if (fibers[current].state == State::kEnded) continue;
      threadIdx.x = first_thread + current;
      swapcontext(&scheduler, &fibers[current].context);
      any_waits |= fibers[current].state == State::kWaits;
    }
    if (!any_waits) return;
    combine();
  }
}

}  // namespace

uint32_t together(Operation operation, uint32_t mask, uint32_t value, unsigned other) {
  if (body == nullptr) stop("this kernel was taken for one whose threads do not meet", 0);
  if (mask != kWholeWarp) stop("the emulator takes whole warps only", current);
  Fiber& fiber = fibers[current];
  fiber.operation = operation;
  fiber.given = value;
  fiber.other = other;
  fiber.state = State::kWaits;
  swapcontext(&fiber.context, &scheduler);
  return fiber.result;
}

void launch(unsigned grid, unsigned block, bool together, const std::function<void()>& thread) {
  ++launches;
  use(current_device);
  refused = grid == 0 || block == 0 || block > kMaxThreads || block % kLanes != 0;
  if (refused) return;
  body = together ? &thread : nullptr;
  gridDim.x = grid;
  blockDim.x = block;
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
    if (together)
      for (unsigned warp = 0; warp < block; warp += kLanes) run_warp(warp);
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
// On which devices: bit i is of device i, of which tensors are on device 1.
EXPORTED uint32_t cuda_on_host_contexts() { return emulator::contexts; }
