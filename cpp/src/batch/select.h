// Choosing rows on the host.
#pragma once

#include <cstdint>
#include <vector>

namespace tabes {

// Numbers of the `count` largest values among [begin, end), ties to the lowest; increasing.
std::vector<int64_t> largest(const double* values, int64_t begin, int64_t end, int64_t count);

// The largest n with c_(r) >= 1 - f / (r + 1) for all ranks r = 2..n of the confidences, which fall
// (Fast-dLLM's factor rule, arXiv 2505.22618); 1 of one or more.
int64_t within_factor(const std::vector<double>& falling, double f);

}  // namespace tabes
