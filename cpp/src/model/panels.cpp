#include "model/panels.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <exception>
#include <vector>

#include "ops/cpu/kernels.h"

namespace tabes {
namespace {

using c10::BFloat16;
using cpu::kPanelWidth;

constexpr int64_t kTile = 64;      // rows a kernel multiplies at most
constexpr int64_t kHalfTile = 32;  // what is left is split by this, for fewer kernels
constexpr int64_t kDepth = 1024;  // of a panel at once: with it, it stays in the second-level cache
constexpr int64_t kRows = 256;    // that share a panel before the next one
constexpr int64_t kRowsMade = 1024;  // the same where panels have to be made

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <typename T>
constexpr bool kPaired = std::is_same_v<T, BFloat16>;

// Values of one column of a panel, padding included.
template <typename T>
int64_t padded(int64_t depth) {
  return kPaired<T> ? depth + depth % 2 : depth;
}

template <typename T>
void tile_product(int64_t rows, int64_t columns, int64_t depth, const T* x, int64_t stride,
                  const T* panel, bool add, float* sums) {
  at::native::cpublas::brgemm(rows, columns, depth, stride, columns, kPanelWidth, add, x, panel,
                              sums, kPaired<T>);
}

// Matrix units are given back when a thread has done its part.
template <typename T>
struct Units {
  Units() = default;
  Units(const Units&) = delete;
  Units& operator=(const Units&) = delete;
  ~Units() { at::native::cpublas::brgemm_release(kPaired<T>); }
};

template <typename T>
bool kernels_work() {
  static const bool work = [] {
    const std::array<T, 4> x{1, 2, 3, 4}, panel{1, 1, 1, 1};
    std::array<float, 2 * kPanelWidth> sums{};
    try {
      const Units<T> units;
      tile_product<T>(2, 2, 2, x.data(), 2, panel.data(), false, sums.data());
    } catch (const std::exception&) {
      return false;  // no such kernel on this processor
    }
    return sums[0] == 3 && sums[1] == 3 && sums[kPanelWidth] == 7;
  }();
  return work;
}

// Calls each(panel's number, its first column, its columns).
template <typename Each>
void for_panels(int64_t columns, const Each& each) {
  at::parallel_for(0, ceil_div(columns, kPanelWidth), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t from = p * kPanelWidth;
      each(from, std::min(kPanelWidth, columns - from));
    }
  });
}

template <typename T>
struct Product {
  const T* x;
  int64_t rows, depth, columns;
  const T *bias, *residual;
  cpu::Activation activation;
  T* y;

  // `panel(first column, columns, from, depth, room)`: the piece of a panel from row `from` of its
  // depth on, in `room` (kDepth * kPanelWidth) if it has to be made.
  template <typename Panel>
  void run(const Panel& panel, bool made) const {
    const auto& kernels = cpu::panel_kernels<T>();
    const int64_t panels = ceil_div(columns, kPanelWidth);
    const int64_t wanted = ceil_div(at::get_num_threads(), panels);
    const int64_t share = std::max(kTile, ceil_div(ceil_div(rows, wanted), kTile) * kTile);
    const int64_t at_once = std::min(made ? kRowsMade : kRows, share);
    at::parallel_for(0, panels * ceil_div(rows, at_once), 1, [&](int64_t begin, int64_t end) {
      const Units<T> units;
      std::vector<T> room(made ? kDepth * kPanelWidth : 0);
      std::vector<float> sums(std::min(rows, at_once) * kPanelWidth);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task / panels * at_once, from = task % panels * kPanelWidth;
        const int64_t count = std::min(at_once, rows - first);
        const int64_t width = std::min(kPanelWidth, columns - from);
        for (int64_t k = 0; k < depth; k += kDepth) {
          const int64_t deep = std::min(kDepth, depth - k);
          const T* piece = panel(from, width, k, deep, room.data());
          for (int64_t r = 0; r < count;) {
            const int64_t left = count - r;
            const int64_t tile = left >= kTile ? kTile : left > kHalfTile ? kHalfTile : left;
            tile_product<T>(tile, width, deep, x + (first + r) * depth + k, depth, piece, k > 0,
                            sums.data() + r * kPanelWidth);
            r += tile;
          }
        }
        const int64_t at = first * columns + from;
        kernels.finish(sums.data(), count, width, bias ? bias + from : nullptr, activation,
                       residual ? residual + at : nullptr, y + at, columns);
      }
    });
  }
};

// Calls with a null float* or BFloat16*.
template <typename Body>
void for_type(at::ScalarType type, const Body& body) {
  if (type == at::kFloat) {
    body(static_cast<float*>(nullptr));
  } else {
    body(static_cast<BFloat16*>(nullptr));
  }
}

// x [n, depth] by a matrix [depth, columns].
template <typename Panel>
at::Tensor multiply(const at::Tensor& x, int64_t columns, const Epilogue& epilogue, bool made,
                    const Panel& panel) {
  const at::Tensor rows = x.contiguous(), bias = epilogue.bias;
  const at::Tensor residual =
      epilogue.residual.defined() ? epilogue.residual.contiguous() : at::Tensor();
  at::Tensor y = at::empty({rows.size(0), columns}, rows.options());
  for_type(rows.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const auto data = [](const at::Tensor& t) {
      return t.defined() ? t.const_data_ptr<T>() : nullptr;
    };
    const Product<T> product{data(rows), rows.size(0),   rows.size(1),        columns,
                             data(bias), data(residual), epilogue.activation, y.data_ptr<T>()};
    product.run([&](int64_t from, int64_t width, int64_t k, int64_t deep,
                    T* room) { return panel(from, width, k, deep, room); },
                made);
  });
  return y;
}

}  // namespace

bool has_panel_products(const at::Tensor& weight) {
  if (!weight.is_cpu() || cpu::instruction_set() == std::string_view("default")) return false;
  if (!at::globalContext().userEnabledMkldnn()) return false;
  if (weight.scalar_type() == at::kFloat) return kernels_work<float>();
  return weight.scalar_type() == at::kBFloat16 && kernels_work<BFloat16>();
}

at::Tensor to_panels(const at::Tensor& weight) {
  const int64_t out = weight.size(0), in = weight.size(1);
  at::Tensor panels;
  for_type(weight.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    panels = at::empty({out * padded<T>(in)}, weight.options());
    const T* rows = weight.const_data_ptr<T>();
    T* to = panels.data_ptr<T>();
    for_panels(out, [&](int64_t from, int64_t width) {
      cpu::panel_kernels<T>().from_rows(rows + from * in, in, width, in, to + from * padded<T>(in));
    });
  });
  return panels;
}

at::Tensor from_panels(const at::Tensor& panels, int64_t out, int64_t in) {
  at::Tensor weight = at::empty({out, in}, panels.options());
  for_type(panels.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    constexpr int64_t kPair = kPaired<T> ? 2 : 1;
    const T* data = panels.const_data_ptr<T>();
    T* rows = weight.data_ptr<T>();
    for_panels(out, [&](int64_t from, int64_t width) {
      const T* panel = data + from * padded<T>(in);
      for (int64_t o = 0; o < width; ++o) {
        for (int64_t i = 0; i < in; ++i) {
          rows[(from + o) * in + i] = panel[(i / kPair * width + o) * kPair + i % kPair];
        }
      }
    });
  });
  return weight;
}

at::Tensor PanelWeight::product(const at::Tensor& x, const Epilogue& epilogue) const {
  return multiply(x, out, epilogue, !in_panels,
                  [&](int64_t from, int64_t width, int64_t k, int64_t deep, auto* room) {
                    using T = std::remove_pointer_t<decltype(room)>;
                    const T* all = data.const_data_ptr<T>();
                    if (in_panels) return all + from * padded<T>(in) + k * width;
                    cpu::panel_kernels<T>().from_rows(all + from * in + k, in, width, deep, room);
                    return static_cast<const T*>(room);
                  });
}

at::Tensor PanelWeight::adjoint(const at::Tensor& g, const Epilogue& epilogue) const {
  return multiply(g, in, epilogue, true,
                  [&](int64_t from, int64_t width, int64_t k, int64_t deep, auto* room) {
                    using T = std::remove_pointer_t<decltype(room)>;
                    const auto& kernels = cpu::panel_kernels<T>();
                    const T* all = data.const_data_ptr<T>();
                    if (!in_panels) {
                      kernels.from_columns(all + k * in + from, in, width, deep, room);
                      return static_cast<const T*>(room);
                    }
                    for (int64_t o = k; o < k + deep; o += kPanelWidth) {
                      const int64_t outputs = std::min(kPanelWidth, out - o);
                      kernels.from_panel(all + o * padded<T>(in) + from * outputs, width, outputs,
                                         room + (o - k) * width);
                    }
                    return static_cast<const T*>(room);
                  });
}

}  // namespace tabes
