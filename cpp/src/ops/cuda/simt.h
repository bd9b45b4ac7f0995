// A CPU stand-in for one GPU's thread blocks, so that tests run the kernels' own source. Declared
// here because the kernels call it when an ordinary compiler builds them; only the tests define it
// (tests/cpp/simt.cpp). Threads of a block are fibers: they run one at a time, in an order that the
// caller chooses, up to the next barrier or warp-wide operation.
#pragma once

#if !defined(__CUDACC__)

#include <cstdint>
#include <functional>

namespace tabes::simt {

struct Here {
  int thread, threads;
  int block[3];
};
const Here& here();

void sync_block();
void sync_warp();
uint32_t shuffle(uint32_t value, int lane);
void copy_async(void* to, const void* from, bool valid);
void commit_copies();
void wait_copies(int left);
void load_matrices(uint32_t (&r)[4], const void* row, bool transposed);
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool bfloat16);

// What hardware leaves open. Results must not depend on any of it.
struct Schedule {
  bool backwards = false;    // the last warp and the last lane go first
  bool late_copies = false;  // asynchronous copies land when waited for instead of at once
};

// Of the runs that follow on this thread.
inline thread_local Schedule schedule;

struct Grid {
  int x = 1, y = 1, z = 1;
};

// Runs body(shared memory) once for each thread of each block. Shared memory starts as NaNs.
// Throws std::logic_error if threads wait for one another forever, or leave copies unwaited.
void run(Grid grid, int threads, int64_t shared_bytes, const std::function<void(char*)>& body);

}  // namespace tabes::simt

#endif
