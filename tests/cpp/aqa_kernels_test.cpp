// The source of the ActiveQueryAttention adjoint's kernels, run on the CPU thread by thread
// (simt.h), against the definition in float64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "ops/cuda/aqa_params.h"
#include "ops/cuda/number.h"
#include "ops/cuda/simt.h"

namespace tabes::gpu {
namespace {

using Offsets = std::vector<int64_t>;

// Half the gap between neighbouring numbers, relative: what rounding to T may change.
template <typename T>
constexpr double kRounding = std::is_same_v<T, float> ? 0x1p-24
                             : IsBFloat16<T>::value   ? 0x1p-8
                                                      : 0x1p-11;
template <typename T>
constexpr Number kNumber = std::is_same_v<T, float> ? Number::fp32
                           : IsBFloat16<T>::value   ? Number::bf16
                                                    : Number::fp16;

// Aligned like device memory.
template <typename T>
struct Buffer {
  explicit Buffer(size_t n) : storage(n + 64 / sizeof(T)) {
    const auto at = reinterpret_cast<uintptr_t>(storage.data());
    data = storage.data() + (64 - at % 64) % 64 / sizeof(T);
    std::memset(static_cast<void*>(data), 0xff, n * sizeof(T));  // NaN of every type
  }
  std::vector<T> storage;
  T* data;
};

// Rows of heads that lie `stride` apart, as slices of a wider matrix do.
template <typename T>
struct Rows {
  Rows(int64_t rows, int64_t width, int64_t stride, std::mt19937& random)
      : stride(stride), values(rows * stride) {
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        values.data[r * stride + c] = from_float<T>(normal(random));
      }
    }
  }
  double at(int64_t row, int64_t column) const {
    return to_float(values.data[row * stride + column]);
  }
  int64_t stride;
  Buffer<T> values;
};

struct Case {
  std::vector<int> keys, active;  // a sequence each
  int heads = 2, groups = 2;
  bool bias = false, subset = false, kept = false;
  int splits = 1;
  simt::Schedule schedule = {};
};

template <typename T, int D>
class Adjoint {
 public:
  explicit Adjoint(const Case& c)
      : c_(c),
        cu_k_(offsets(c.keys)),
        cu_q_(offsets(c.active)),
        q_(cu_q_.back(), width(c.heads), width(c.heads), random_),
        grad_(cu_q_.back(), width(c.heads), width(c.heads) + 8, random_),
        k_(cu_k_.back(), width(c.groups), 2 * width(c.groups), random_),
        v_(cu_k_.back(), width(c.groups), 2 * width(c.groups), random_),
        bias_(cu_q_.back(), longest(), longest() + 3, random_),
        out_(cu_q_.back(), width(c.heads), width(c.heads), random_),
        dq_(0),
        dk_(0),
        dv_(0) {
    std::vector<int> wanted;
    for (size_t b = 0; b < c.keys.size(); ++b) {
      // Active rows at random places; of the queries every other one is wanted.
      std::vector<int64_t> rows(c.keys[b]);
      for (int i = 0; i < c.keys[b]; ++i) rows[i] = cu_k_[b] + i;
      std::shuffle(rows.begin(), rows.end(), random_);
      rows.resize(c.active[b]);
      std::sort(rows.begin(), rows.end());
      active_.insert(active_.end(), rows.begin(), rows.end());
      wanted.push_back((c.active[b] + 1) / 2);
      for (int i = 0; i < c.active[b]; i += 2) queries_.push_back(cu_q_[b] + i);
    }
    cu_queries_ = offsets(wanted);
    reference();
  }

  void run() {
    const int64_t m = cu_q_.back(), nk = static_cast<int64_t>(active_.size());
    const int64_t wanted = c_.subset ? cu_queries_.back() : m;
    dq_ = Buffer<T>(wanted * width(c_.heads));
    dk_ = Buffer<T>(nk * width(c_.groups));
    dv_ = Buffer<T>(nk * width(c_.groups));
    Buffer<float> lse(m * c_.heads), delta(m * c_.heads), row_parts(3 * c_.splits * m * c_.heads);
    Buffer<float> dq_parts(c_.splits * wanted * width(c_.heads)),
        dk_parts(c_.splits * nk * width(c_.groups)), dv_parts(c_.splits * nk * width(c_.groups));
    if (c_.kept) std::copy(lse_.begin(), lse_.end(), lse.data);
    AqaParams p{};
    p.q = q_.values.data, p.q_stride = q_.stride;
    p.grad = grad_.values.data, p.grad_stride = grad_.stride;
    p.k = k_.values.data, p.k_stride = k_.stride;
    p.v = v_.values.data, p.v_stride = v_.stride;
    if (c_.kept) p.out = out_.values.data, p.out_stride = out_.stride;
    p.row_lse = lse.data, p.row_delta = delta.data;
    if (c_.bias) p.bias = bias_.values.data, p.bias_stride = bias_.stride;
    p.keys = active_.data(), p.queries = c_.subset ? queries_.data() : nullptr;
    p.cu_q = cu_q_.data(), p.cu_k = cu_k_.data(), p.cu_keys = cu_q_.data();
    p.cu_queries = cu_queries_.data();
    p.dq = dq_.data, p.dk = dk_.data, p.dv = dv_.data;
    p.total_q = m, p.total_dq = wanted, p.total_keys = nk;
    p.row_parts = row_parts.data, p.dq_parts = dq_parts.data;
    p.dk_parts = dk_parts.data, p.dv_parts = dv_parts.data;
    p.row_splits = p.dq_splits = p.key_splits = c_.splits;
    p.batch = static_cast<int>(c_.keys.size()), p.heads = c_.heads, p.groups = c_.groups;
    p.scale = kScale;
    launch(p);
  }

  void expect_close() const {
    const int64_t columns = width(c_.heads), key_columns = width(c_.groups);
    for (size_t i = 0; i < (c_.subset ? queries_.size() : size_t(cu_q_.back())); ++i) {
      compare("dq", dq_.data + i * columns, c_.subset ? queries_[i] : int64_t(i), dq_true_,
              columns);
    }
    for (size_t j = 0; j < active_.size(); ++j) {
      compare("dk", dk_.data + j * key_columns, j, dk_true_, key_columns);
      compare("dv", dv_.data + j * key_columns, j, dv_true_, key_columns);
    }
  }

  std::vector<T> results() const {
    std::vector<T> all(dq_.data, dq_.data + cu_q_.back() / (c_.subset ? 2 : 1) * width(c_.heads));
    all.insert(all.end(), dk_.data, dk_.data + active_.size() * width(c_.groups));
    all.insert(all.end(), dv_.data, dv_.data + active_.size() * width(c_.groups));
    return all;
  }
  void damage_key(size_t at, int64_t row) { active_[at] = row; }
  const T* dk_row(size_t at) const { return dk_.data + at * width(c_.groups); }

 private:
  static constexpr float kScale = 0.11f;
  static int64_t width(int heads) { return int64_t{heads} * D; }
  static Offsets offsets(const std::vector<int>& lengths) {
    Offsets cu{0};
    for (int n : lengths) cu.push_back(cu.back() + n);
    return cu;
  }
  int64_t longest() const { return *std::max_element(c_.keys.begin(), c_.keys.end()); }

  void launch(const AqaParams& p) const {
    const auto tiles = [&](const Offsets& cu, const AqaShape& shape) {
      return aqa_tiles(cu.data(), p.batch, shape.rows);
    };
    const AqaShape query = aqa_query_shape(kNumber<T>, D), key = aqa_key_shape(kNumber<T>, D);
    const AqaGrid grid{tiles(cu_q_, query), tiles(p.queries ? cu_queries_ : cu_q_, query),
                       tiles(cu_q_, key)};
    simt::schedule = c_.schedule;
    ASSERT_EQ(launch_aqa_adjoint(p, kNumber<T>, D, grid, nullptr), 0);
    simt::schedule = {};
  }

  // A true value, and how much the kernels' roundings may move it.
  struct Truth {
    double value = 0, slack = 0;
    void add(double term, double spread) {
      value += term;
      slack += spread;
    }
  };

  // The definition. Besides summation in float32 a kernel rounds probabilities and score gradients
  // to T, and with a kept forward result its delta is computed from a rounded one.
  void reference() {
    const double u = kRounding<T>, tiny = 4e-6;
    dq_true_.resize(cu_q_.back() * width(c_.heads));
    dk_true_.resize(active_.size() * width(c_.groups));
    dv_true_.resize(dk_true_.size());
    lse_.resize(cu_q_.back() * c_.heads);
    for (size_t b = 0; b < c_.keys.size(); ++b) {
      for (int64_t i = cu_q_[b]; i < cu_q_[b + 1]; ++i) {
        for (int h = 0; h < c_.heads; ++h) reference_row(b, i, h, u, tiny);
      }
    }
  }
  void reference_row(size_t b, int64_t i, int h, double u, double tiny) {
    const int g = h / (c_.heads / c_.groups), length = c_.keys[b];
    std::vector<double> p(length), dp(length);
    double sum = 0, delta = 0, spread = 0;
    for (int j = 0; j < length; ++j) {
      double score = 0;
      for (int d = 0; d < D; ++d) {
        score += q_.at(i, h * D + d) * k_.at(cu_k_[b] + j, g * D + d);
        dp[j] += grad_.at(i, h * D + d) * v_.at(cu_k_[b] + j, g * D + d);
      }
      p[j] = std::exp(score * kScale + (c_.bias ? bias_.at(i, j) : 0.0));
      sum += p[j];
    }
    lse_[i * c_.heads + h] = static_cast<float>(std::log(sum));
    for (double& x : p) x /= sum;
    for (int j = 0; j < length; ++j) delta += p[j] * dp[j];
    for (int d = 0; d < D; ++d) {
      double o = 0;
      for (int j = 0; j < length; ++j) o += p[j] * v_.at(cu_k_[b] + j, g * D + d);
      out_.values.data[i * out_.stride + h * D + d] = from_float<T>(static_cast<float>(o));
      if (c_.kept) spread += u * std::abs(o * grad_.at(i, h * D + d));
    }
    for (int j = 0; j < length; ++j) {
      const double ds = p[j] * (dp[j] - delta) * kScale;
      const double slack = (u + tiny) * std::abs(ds) +
                           p[j] * kScale * (spread + tiny * (std::abs(dp[j]) + std::abs(delta)));
      const auto found = std::lower_bound(active_.begin(), active_.end(), cu_k_[b] + j);
      const bool wanted = found != active_.end() && *found == cu_k_[b] + j;
      const int64_t key = (found - active_.begin()) * width(c_.groups) + g * D;
      for (int d = 0; d < D; ++d) {
        const double kd = k_.at(cu_k_[b] + j, g * D + d), qd = q_.at(i, h * D + d);
        const double gd = grad_.at(i, h * D + d);
        dq_true_[i * width(c_.heads) + h * D + d].add(ds * kd, slack * std::abs(kd));
        if (!wanted) continue;
        dk_true_[key + d].add(ds * qd, slack * std::abs(qd));
        dv_true_[key + d].add(p[j] * gd, (u + tiny) * std::abs(p[j] * gd));
      }
    }
  }

  void compare(const char* name, const T* got, int64_t row, const std::vector<Truth>& wanted,
               int64_t columns) const {
    for (int64_t c = 0; c < columns; ++c) {
      const Truth& truth = wanted[row * columns + c];
      const double error = std::abs(to_float(got[c]) - truth.value);
      const double limit = truth.slack + kRounding<T> * std::abs(truth.value) + 1e-7;
      ASSERT_LE(error, limit) << name << "[" << row << ", " << c << "] = " << to_float(got[c])
                              << ", not " << truth.value;
    }
  }

  std::mt19937 random_{5};
  Case c_;
  Offsets cu_k_, cu_q_, cu_queries_, active_, queries_;
  Rows<T> q_, grad_, k_, v_, bias_, out_;
  std::vector<float> lse_;
  std::vector<Truth> dq_true_, dk_true_, dv_true_;
  Buffer<T> dq_, dk_, dv_;
};

template <typename T>
class AqaKernels : public testing::Test {
 protected:
  template <int D>
  static void check(const Case& c) {
    Adjoint<T, D> adjoint(c);
    adjoint.run();
    adjoint.expect_close();
  }
};
using Types = testing::Types<float, BFloat16, Half>;
TYPED_TEST_SUITE(AqaKernels, Types);

TYPED_TEST(AqaKernels, EveryHeadSize) {
  const Case c{.keys = {70}, .active = {35}, .heads = 1, .groups = 1};
  this->template check<32>(c);
  this->template check<64>(c);
  this->template check<96>(c);
  this->template check<128>(c);
  this->template check<256>(c);
}

TYPED_TEST(AqaKernels, CountsAroundTheTile) {
  for (int active : {1, 63, 64, 65, 97}) {
    this->template check<32>({.keys = {97}, .active = {active}, .heads = 1, .groups = 1});
  }
}

TYPED_TEST(AqaKernels, RaggedBatchWithEmptyActiveSets) {
  this->template check<32>({.keys = {66, 9, 1, 130}, .active = {65, 0, 1, 17}});
}

TYPED_TEST(AqaKernels, GroupedHeads) {
  this->template check<32>({.keys = {40, 70}, .active = {9, 33}, .heads = 6, .groups = 2});
}

TYPED_TEST(AqaKernels, BiasOnTheScores) {
  this->template check<32>({.keys = {40, 70}, .active = {9, 66}, .bias = true});
}

TYPED_TEST(AqaKernels, SomeQueriesOnly) {
  this->template check<32>({.keys = {40, 70}, .active = {9, 66}, .subset = true});
}

TYPED_TEST(AqaKernels, KeptForwardResult) {
  this->template check<64>({.keys = {40, 70}, .active = {9, 66}, .kept = true});
  this->template check<32>({.keys = {40, 70}, .active = {9, 66}, .subset = true, .kept = true});
}

TYPED_TEST(AqaKernels, InParts) {
  for (bool kept : {false, true}) {
    this->template check<32>(
        {.keys = {150, 20}, .active = {66, 3}, .heads = 4, .groups = 2, .kept = kept, .splits = 3});
  }
}

// Neither the order in which threads get on nor when copies land may change a bit: a missing
// barrier or wait shows as a difference (shared memory starts as NaNs).
TYPED_TEST(AqaKernels, SameBitsWhateverTheSchedule) {
  // Four tiles of keys, and of queries, so that stages are used again.
  Case c{.keys = {230}, .active = {66}, .heads = 2, .groups = 1};
  Adjoint<TypeParam, 64> first(c);
  first.run();
  const auto wanted = first.results();
  for (int i = 1; i < 4; ++i) {
    c.schedule = {.backwards = i % 2 == 1, .late_copies = i >= 2};
    Adjoint<TypeParam, 64> other(c);
    other.run();
    const auto got = other.results();
    EXPECT_EQ(std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(TypeParam)), 0) << i;
  }
}

// A row number from outside the sequence reads nothing there and cannot pass for a result.
TYPED_TEST(AqaKernels, ForeignRowsGiveNaN) {
  Adjoint<TypeParam, 32> adjoint({.keys = {20, 20}, .active = {5, 5}, .heads = 1, .groups = 1});
  adjoint.damage_key(2, 35);
  adjoint.damage_key(7, int64_t{1} << 40);
  adjoint.run();
  for (size_t row : {0, 2, 7}) {
    EXPECT_EQ(std::isnan(to_float(adjoint.dk_row(row)[0])), row != 0) << row;
  }
}

}  // namespace
}  // namespace tabes::gpu
