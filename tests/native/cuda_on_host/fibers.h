// Functions with stacks of their own, which change places. glibc's swapcontext asks the kernel for the signal mask,
// and AddressSanitizer's goes through the whole shadow of the stack: both cost more than what is emulated.
#pragma once

#include <cstdint>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  explicit Fiber(size_t stack) : stack_(stack != 0 ? new char[stack] : nullptr), size_(stack) {}

  // The next change to it begins `run`, which must not return: it changes to another fiber at its end.
  void begin(void (*run)());

  friend void change(Fiber& from, Fiber& to);

 private:
  std::unique_ptr<char[]> stack_;
  size_t size_;
#if defined(__x86_64__)
  void* top_ = nullptr;
#else
  ucontext_t context_;
#endif
};

#if defined(__x86_64__)

// Keeps what the calling convention asks of a function to keep, and where it was in *from.
extern "C" void cuda_on_host_change(void** from, void* to);
asm(R"(
.text
.type cuda_on_host_change, @function
cuda_on_host_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_host_change, .-cuda_on_host_change
)");

inline void Fiber::begin(void (*run)()) {
  auto* top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack_.get()) + size_) / 16 * 16);
  *--top = nullptr;  // to which `run` would return
  *--top = reinterpret_cast<void*>(run);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers
  top_ = top;
}

inline void change(Fiber& from, Fiber& to) { cuda_on_host_change(&from.top_, to.top_); }

#else

inline void Fiber::begin(void (*run)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = size_;
  context_.uc_link = nullptr;
  makecontext(&context_, run, 0);
}

inline void change(Fiber& from, Fiber& to) { swapcontext(&from.context_, &to.context_); }

#endif

}  // namespace emulator
