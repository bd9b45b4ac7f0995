#include "batch/select.h"

#include <algorithm>
#include <numeric>

namespace tabes {

std::vector<int64_t> largest(const double* values, int64_t begin, int64_t end, int64_t count) {
  std::vector<int64_t> order(end - begin);
  std::iota(order.begin(), order.end(), begin);
  count = std::min<int64_t>(count, static_cast<int64_t>(order.size()));
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int64_t x, int64_t y) {
    return values[x] > values[y] || (values[x] == values[y] && x < y);
  });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

int64_t within_factor(const std::vector<double>& falling, double f) {
  size_t n = 1;
  while (n < falling.size() && falling[n] >= 1.0 - f / static_cast<double>(n + 2)) ++n;
  return static_cast<int64_t>(n);
}

}  // namespace tabes
