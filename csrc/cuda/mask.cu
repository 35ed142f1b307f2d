// Packed masks on NVIDIA GPUs. Bound by memory: a byte and a bit a synapse. A thread takes 32 synapses by accesses
// of 16 bytes wherever rows begin: 3.5 instructions a byte (sm_90), where 4.3 TB/s leave time for seven.
#include "flexkern/synapse.h"
#include "launch.cuh"

namespace flexkern::cuda {

namespace {

constexpr int kBlock = 16;  // bytes of one access
constexpr int kTake = 32;   // synapses of a thread

inline __device__ int lead_of(const uint8_t* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % kBlock);
}

// The highest four bits: of each byte whether it is not 0. Others are set too.
__device__ __forceinline__ uint32_t highest_bits(uint32_t bytes) {
  const uint32_t set = (((bytes & 0x7f7f7f7fu) + 0x7f7f7f7fu) | bytes) & 0x80808080u;
  return set * 0x00204081u;  // bits 7, 15, 23 and 31 go to 28 .. 31; no two terms meet, so nothing carries
}

// Bit i: whether byte i is not 0.
__device__ __forceinline__ uint32_t bits_of(uint4 bytes) {
  uint32_t bits = __funnelshift_l(highest_bits(bytes.w), 0u, 4);
  bits = __funnelshift_l(highest_bits(bytes.z), bits, 4);
  bits = __funnelshift_l(highest_bits(bytes.y), bits, 4);
  return __funnelshift_l(highest_bits(bytes.x), bits, 4);
}

// Byte i is bit i, of four.
__device__ __forceinline__ uint32_t bytes4(uint32_t bits) { return ((bits & 0xfu) * 0x00204081u) & 0x01010101u; }

__device__ __forceinline__ uint4 bytes_of(uint32_t bits) {
  return make_uint4(bytes4(bits), bytes4(bits >> 4), bytes4(bits >> 8), bytes4(bits >> 12));
}

// Where a thread is: in a row that begins at `row` of some array, at `column` of `width`. It goes so far on at
// once, because a division of 64 bits costs as much as all else that is done for 32 synapses.
struct Walk {
  int64_t column, row, width, row_size, columns_on, rows_on;
  __device__ Walk(int64_t first, int64_t step, int64_t width, int64_t row_size)
      : column(first % width),
        row(first / width * row_size),
        width(width),
        row_size(row_size),
        columns_on(step % width),
        rows_on(step / width * row_size) {}
  __device__ void go() {
    column += columns_on;
    row += rows_on;
    if (column >= width) {
      column -= width;
      row += row_size;
    }
  }
};

// A thread makes a word. Rows begin at any byte: where that is no multiple of 16, three aligned blocks have the 32
// bytes, and their bits are shifted.
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const uint8_t* mask, int32_t* words, int64_t rows, int64_t columns, int64_t per_row) {
  const int64_t bytes = rows * columns, total = rows * per_row;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (Walk at(index, step, per_row, columns); index < total; index += step, at.go()) {
    const int64_t begin = at.row + at.column * kTake, left = columns - at.column * kTake;
    const int count = left < kTake ? static_cast<int>(left) : kTake, lead = lead_of(mask + begin);
    const int64_t first = begin - lead, past = first + (lead == 0 ? 2 : 3) * kBlock;
    uint32_t word = 0;
    if (first >= 0 && past <= bytes) {
      const uint4* const block = reinterpret_cast<const uint4*>(mask + first);
      const uint4 a = block[0], b = block[1], c = lead == 0 ? make_uint4(0, 0, 0, 0) : block[2];
      word = bits_of(a) | bits_of(b) << kBlock;
      if (lead != 0) word = __funnelshift_r(word, bits_of(c), lead);
      word &= ~0u >> (kTake - count);
    } else {  // at the ends of the mask, whose neighbours in memory are not ours to read
#pragma unroll
      for (int i = 0; i < kTake; ++i)
        if (i < count) word |= static_cast<uint32_t>(mask[begin + i] != 0) << i;
    }
    words[index] = static_cast<int32_t>(word);
  }
}

// The 32 synapses from `column` of a row on, as bits; also of the rows that follow in the matrix.
__device__ __forceinline__ uint32_t bits_at(const int32_t* words, int64_t total, int64_t columns, int64_t per_row,
                                            int64_t row, int64_t column) {
  uint32_t bits = 0;
  for (int filled = 0; filled < kTake && row < total; row += per_row, column = 0) {
    const int64_t left = columns - column, k = column / kWordBits;
    const int32_t* const word = words + row + k;
    const uint32_t next = k + 1 < per_row ? static_cast<uint32_t>(word[1]) : 0u;
    const uint32_t some =
        __funnelshift_r(static_cast<uint32_t>(word[0]), next, static_cast<int>(column % kWordBits));
    const int count = left < kTake ? static_cast<int>(left) : kTake;
    bits |= (some & ~0u >> (kTake - count)) << filled;
    filled += count;
  }
  return bits;
}

__device__ __forceinline__ void store_bytes(uint8_t* to, int64_t count, uint32_t bits) {
#pragma unroll 1
  for (int i = 0; i < count; ++i) to[i] = bits >> i & 1u;
}

// A thread makes 32 bytes at a multiple of 16; the first one also the few before, where the mask begins elsewhere.
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const int32_t* words, uint8_t* mask, int64_t rows, int64_t columns, int64_t per_row) {
  const int64_t total = rows * columns, packed = rows * per_row;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kTake;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int before = (kBlock - lead_of(mask)) % kBlock;
  if (index == 0)
    store_bytes(mask, total < before ? total : before, bits_at(words, packed, columns, per_row, 0, 0));
  int64_t begin = before + index * kTake;
  for (Walk at(begin, step, columns, per_row); begin < total; begin += step, at.go()) {
    const uint32_t bits = bits_at(words, packed, columns, per_row, at.row, at.column);
    if (total - begin >= kTake) {
      uint4* const block = reinterpret_cast<uint4*>(mask + begin);
      block[0] = bytes_of(bits);
      block[1] = bytes_of(bits >> kBlock);
    } else {
      store_bytes(mask + begin, total - begin, bits);
    }
  }
}

}  // namespace

const char* pack_mask(const uint8_t* mask, int32_t* words, int64_t rows, int64_t columns, int device,
                      Stream stream) {
  const int64_t per_row = words_in_row(columns), total = rows * per_row;
  if (total == 0) return nullptr;
  if (const char* error = use_device(device)) return error;
  const unsigned blocks = grid_size<pack_kernel>((total + kThreads - 1) / kThreads, device);
  pack_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(mask, words, rows, columns, per_row);
  return launch_error();
}

const char* unpack_mask(const int32_t* words, uint8_t* mask, int64_t rows, int64_t columns, int device,
                        Stream stream) {
  const int64_t total = rows * columns;
  if (total == 0) return nullptr;
  if (const char* error = use_device(device)) return error;
  constexpr int64_t kBytes = kThreads * kTake;
  const unsigned blocks = grid_size<unpack_kernel>((total + kBytes - 1) / kBytes, device);
  unpack_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(words, mask, rows, columns,
                                                                            words_in_row(columns));
  return launch_error();
}

}  // namespace flexkern::cuda
