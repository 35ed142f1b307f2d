// Faults that sanitizers must find: tests/native/test_sanitize.py compiles it with the flags of
// scripts/sanitize.py.
#include <cstdint>
#include <cstdlib>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int32_t sound(int32_t i) { return std::vector<int32_t>(8, i)[7]; }

EXPORTED int32_t read_past_the_end(int32_t i) {
  const std::vector<int32_t> values(8, i);
  return values.data()[8 + i];
}

EXPORTED int32_t overflow(int32_t i) { return i + INT32_MAX; }

EXPORTED int32_t shift_of_a_negative_number(int32_t i) { return -i << 3; }

EXPORTED int32_t use_after_free(int32_t i) {
  int32_t* values = new int32_t[8]{i};
  delete[] values;
  return values[0];
}
