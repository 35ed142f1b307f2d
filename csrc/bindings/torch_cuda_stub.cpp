// Stands in for libtorch_cuda.so while linking, so that a CUDA build needs no CUDA build of torch: the operator
// library then names libtorch_cuda.so as what it needs, and finds torch's own when it is loaded.
#include <cstdint>

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int32_t aoti_torch_get_current_cuda_stream(int32_t, void**) { return 1; }
EXPORTED int32_t aoti_torch_create_cuda_guard(int32_t, void**) { return 1; }
EXPORTED int32_t aoti_torch_delete_cuda_guard(void*) { return 1; }
