// How the libraries were built, and the instruction set in use: read with Python's ctypes, so that it is known also
// where the module _core is not there.
#include <exception>
#include <string>

#include "build_info.h"
#include "cpu/dispatch.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// As JSON. (build_tools/nvcc.py leaves no quotes and backslashes in what it says.)
EXPORTED const char* flexkern_build_info() {
  return "{\"compiler\": \"" FLEXKERN_COMPILER "\", \"cuda_compiler\": \"" FLEXKERN_CUDA_COMPILER
         "\", \"cuda_architectures\": \"" FLEXKERN_CUDA_ARCHS "\", \"torch_headers\": \"" FLEXKERN_TORCH_HEADERS
         "\"}";
}

// Null: there is none, and `why` says why.
EXPORTED const char* flexkern_instruction_set(const char** why) {
  static std::string refusal;
  try {
    return flexkern::cpu::name_of(flexkern::cpu::instruction_set());
  } catch (const std::exception& error) {
    refusal = error.what();
    *why = refusal.c_str();
    return nullptr;
  }
}
