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

// Null: there is none of this name.
extern "C" __attribute__((visibility("default"))) void* flexkern_direct(const char* name) {
  for (const auto& entry : flexkern::bindings::direct::entries()) {
    if (std::strcmp(entry.name, name) == 0) return reinterpret_cast<void*>(entry.function);
  }
  return nullptr;
}
