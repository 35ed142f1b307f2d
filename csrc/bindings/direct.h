// Calls of the CPU operators past torch's dispatcher, which takes 2 to 4 microseconds to parse and box what Python
// passes: the module _core reads it itself (core_direct.cpp) and calls what the CPU library has here by name. The
// bodies are the same, with all their checks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flexkern::direct {

// One argument, of which what its type in the schema says is set. Handles of tensors change owner with the call.
struct Passed {
  bool given = false;  // it is not None
  union {
    double number;
    int64_t integer;  // of a bool, too
    void** handles;
    const int64_t* integers;
    const double* numbers;
  };
  size_t count = 0;  // of a list
};

constexpr size_t kMostArguments = 32;
constexpr size_t kMostResults = 8;

// Writes the handles of the results, which the caller owns, and returns how many there are.
using Function = size_t (*)(const Passed* arguments, void** results);

// How many elements these tensors have together; of one without sizes, as if it were large.
using Elements = int64_t (*)(void* const* handles, size_t count);

}  // namespace flexkern::direct
