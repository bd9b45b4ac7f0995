// The machine that kernels are written for. Kernel bodies are plain function templates over these
// few primitives; nvcc turns them into PTX, while an ordinary compiler calls ops/cuda/simt.h, whose
// test-only implementation runs whole thread blocks on the CPU. So the very source of every kernel
// is tested where there is no GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/cuda/number.h"
#include "ops/cuda/simt.h"

namespace tabes::gpu {

constexpr int kWarp = 32;

#if defined(__CUDACC__)

TABES_DEVICE int thread_index() {
  return static_cast<int>(threadIdx.x);
}
TABES_DEVICE int block_threads() {
  return static_cast<int>(blockDim.x);
}
TABES_DEVICE int block_x() {
  return static_cast<int>(blockIdx.x);
}
TABES_DEVICE int block_y() {
  return static_cast<int>(blockIdx.y);
}
TABES_DEVICE int block_z() {
  return static_cast<int>(blockIdx.z);
}
TABES_DEVICE void sync_block() {
  __syncthreads();
}
TABES_DEVICE void sync_warp() {
  __syncwarp();
}

TABES_DEVICE uint32_t shuffle_bits(uint32_t v, int lane) {
  return __shfl_sync(0xffffffffu, v, lane);
}

TABES_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory behind the threads' backs; zeros if not `valid`.
TABES_DEVICE void copy_async(void* to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes)
               : "memory");
}
TABES_DEVICE void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `Left` of this thread's groups are still under way.
template <int Left>
TABES_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
TABES_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
TABES_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c [16, 8] += a [16, 16] b [16, 8] by one warp.
template <typename T>
TABES_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (IsBFloat16<T>::value) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Integers only: their sums do not depend on the order.
TABES_DEVICE void shared_add(unsigned long long* to, unsigned long long v) {
  atomicAdd(to, v);
}

#else

inline int thread_index() {
  return simt::here().thread;
}
inline int block_threads() {
  return simt::here().threads;
}
inline int block_x() {
  return simt::here().block[0];
}
inline int block_y() {
  return simt::here().block[1];
}
inline int block_z() {
  return simt::here().block[2];
}
inline void sync_block() {
  simt::sync_block();
}
inline void sync_warp() {
  simt::sync_warp();
}
inline uint32_t shuffle_bits(uint32_t v, int lane) {
  return simt::shuffle(v, lane);
}
inline void copy_async(void* to, const void* from, bool valid) {
  simt::copy_async(to, from, valid);
}
inline void commit_copies() {
  simt::commit_copies();
}
template <int Left>
void wait_copies() {
  simt::wait_copies(Left);
}
inline void load_matrices(uint32_t (&r)[4], const void* row) {
  simt::load_matrices(r, row, /*transposed=*/false);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  simt::load_matrices(r, row, /*transposed=*/true);
}
template <typename T>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::mma(c, a, b0, b1, IsBFloat16<T>::value);
}
inline void shared_add(unsigned long long* to, unsigned long long v) {
  *to += v;
}

#endif

TABES_DEVICE int lane_index() {
  return thread_index() % kWarp;
}
TABES_DEVICE int warp_index() {
  return thread_index() / kWarp;
}

// The value that `lane` holds. All lanes of the warp take part.
template <typename V>
TABES_DEVICE V shuffle(V v, int lane) {
  static_assert(sizeof(V) % 4 == 0);
  union Words {
    TABES_DEVICE Words() {}
    V value;
    uint32_t word[sizeof(V) / 4];
  } words;
  words.value = v;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(V) / 4); ++i) {
    words.word[i] = shuffle_bits(words.word[i], lane);
  }
  return words.value;
}
template <typename V>
TABES_DEVICE V shuffle_xor(V v, int mask) {
  return shuffle(v, lane_index() ^ mask);
}

// Over neighbouring lanes, `width` a power of two up to the warp; every lane gets the same sum,
// since both sides of each exchange add the same two numbers.
template <typename V>
TABES_DEVICE V sum_lanes(V v, int width = kWarp) {
  for (int mask = width / 2; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}

// Over the block's threads, in a fixed order; `scratch` has room for a value of each warp.
template <typename V>
TABES_DEVICE V sum_block(V v, V* scratch) {
  v = sum_lanes(v);
  if (lane_index() == 0) scratch[warp_index()] = v;
  sync_block();
  V total = scratch[0];
  for (int w = 1; w < block_threads() / kWarp; ++w) total += scratch[w];
  sync_block();
  return total;
}

}  // namespace tabes::gpu
