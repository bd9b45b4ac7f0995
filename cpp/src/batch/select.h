// Choosing rows on the host.
#pragma once

#include <cstdint>
#include <vector>

namespace tabes {

// Numbers of the `count` largest values among [begin, end), ties to the lowest; increasing.
std::vector<int64_t> largest(const double* values, int64_t begin, int64_t end, int64_t count);

}  // namespace tabes
