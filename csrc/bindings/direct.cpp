// The operators that can be called past the dispatcher, by name.
#include <cstring>
#include <vector>

#include "device.h"

namespace flexkern::bindings::direct {

namespace {

struct Entry {
  const char* name;
  flexkern::direct::Function function;
};

std::vector<Entry>& entries() {
  static std::vector<Entry> all;
  return all;
}

}  // namespace

void add(const char* name, flexkern::direct::Function function) { entries().push_back({name, function}); }

}  // namespace flexkern::bindings::direct

extern "C" __attribute__((visibility("default"))) int64_t flexkern_elements(void* const* handles, size_t count) {
  int64_t all = 0;
  for (size_t i = 0; i < count; ++i) {
    int64_t elements = 0;
    if (aoti_torch_get_numel(static_cast<AtenTensorHandle>(handles[i]), &elements) != AOTI_TORCH_SUCCESS)
      return INT64_MAX;
    all += elements;
  }
  return all;
}

// Null: there is none of this name.
extern "C" __attribute__((visibility("default"))) void* flexkern_direct(const char* name) {
  for (const auto& entry : flexkern::bindings::direct::entries()) {
    if (std::strcmp(entry.name, name) == 0) return reinterpret_cast<void*>(entry.function);
  }
  return nullptr;
}
