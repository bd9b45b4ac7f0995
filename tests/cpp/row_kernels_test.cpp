// The source of the row-wise kernels, run on the CPU (simt.h), against plain float64 arithmetic.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "ops/cuda/number.h"
#include "ops/cuda/rows_params.h"
#include "ops/cuda/simt.h"
#include "random/philox.h"

namespace tabes::gpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// For the launches of a scope.
struct Backwards {
  Backwards() { simt::schedule = {.backwards = true, .late_copies = true}; }
  ~Backwards() { simt::schedule = {}; }
};

template <typename T>
constexpr Number kNumber = std::is_same_v<T, float> ? Number::fp32
                           : IsBFloat16<T>::value   ? Number::bf16
                                                    : Number::fp16;

template <typename T>
constexpr double kRounding = std::is_same_v<T, float> ? 0x1p-23
                             : IsBFloat16<T>::value   ? 0x1p-8
                                                      : 0x1p-11;

template <typename T>
std::vector<T> draw(size_t n, float deviation, int seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<T> values(n);
  for (T& v : values) v = from_float<T>(normal(random));
  return values;
}

template <typename T>
class RowKernels : public testing::Test {};
using Types = testing::Types<float, BFloat16, Half>;
TYPED_TEST_SUITE(RowKernels, Types);

template <typename T>
std::vector<LogitStatistics> statistics(const std::vector<T>& logits, int64_t vocab, int splits) {
  const int64_t rows = static_cast<int64_t>(logits.size()) / vocab;
  std::vector<LogitPartial> parts(rows * splits);
  std::vector<float> real(4 * rows);
  std::vector<int64_t> argmax(rows);
  StatisticsParams p{};
  p.logits = logits.data(), p.rows = rows, p.vocab = vocab;
  p.splits = splits, p.parts = parts.data();
  p.lse = real.data(), p.entropy = p.lse + rows, p.max_prob = p.entropy + rows;
  p.margin = p.max_prob + rows, p.argmax = argmax.data();
  EXPECT_EQ(launch_statistics(p, kNumber<T>, nullptr), 0);
  std::vector<LogitStatistics> result;
  for (int64_t r = 0; r < rows; ++r) {
    result.push_back({p.lse[r], p.entropy[r], p.max_prob[r], p.margin[r], p.argmax[r]});
  }
  return result;
}

TYPED_TEST(RowKernels, StatisticsMatchTheirDefinitions) {
  for (int64_t vocab : {1, 2, 17, 511, 2048, 5003}) {
    auto logits = draw<TypeParam>(3 * vocab, 4);
    if (vocab > 2) logits[vocab + 1] = from_float<TypeParam>(-kInf);
    for (int splits : {1, 3}) {
      const auto got = statistics(logits, vocab, splits);
      for (int64_t r = 0; r < 3; ++r) {
        std::vector<double> x(vocab);
        for (int64_t v = 0; v < vocab; ++v) x[v] = to_float(logits[r * vocab + v]);
        const auto top = std::max_element(x.begin(), x.end());
        double sum = 0, entropy = 0, second = -kInf;
        for (double v : x) sum += std::exp(v - *top);
        for (size_t v = 0; v < x.size(); ++v) {
          const double p = std::exp(x[v] - *top) / sum;
          if (p > 0) entropy -= p * std::log(p);
          if (top - x.begin() != static_cast<int64_t>(v)) second = std::max(second, x[v]);
        }
        EXPECT_NEAR(got[r].lse, *top + std::log(sum), 2e-5);
        EXPECT_NEAR(got[r].entropy, entropy, 2e-5);
        EXPECT_NEAR(got[r].max_prob, 1 / sum, 2e-6);
        EXPECT_NEAR(got[r].margin, (1 - std::exp(second - *top)) / sum, 2e-6);
        EXPECT_EQ(got[r].argmax, top - x.begin()) << vocab << " in " << splits;
      }
    }
  }
}

TYPED_TEST(RowKernels, StatisticsAreTheSameBitsEveryTime) {
  const auto logits = draw<TypeParam>(3 * 1003, 4);
  const auto first = statistics(logits, 1003, 3);
  const Backwards backwards;
  const auto other = statistics(logits, 1003, 3);
  EXPECT_EQ(std::memcmp(first.data(), other.data(), first.size() * sizeof(first[0])), 0);
}

TEST(RowKernel, StatisticsOfDegenerateRows) {
  const int64_t vocab = 600;
  std::vector<float> x(5 * vocab, -kInf);
  x[vocab + 300] = std::numeric_limits<float>::quiet_NaN();
  for (int64_t at : {599, 4, 77, 301}) x[2 * vocab + at] = 2.0f;  // ties in several threads
  x[3 * vocab + 9] = 5.0f;
  x[4 * vocab + 599] = std::numeric_limits<float>::quiet_NaN();
  x[4 * vocab + 1] = 3.0f;
  for (int splits : {1, 4}) {
    const auto s = statistics(x, vocab, splits);
    EXPECT_TRUE(std::isnan(s[0].entropy));  // nothing to choose from
    EXPECT_EQ(s[0].lse, -kInf);
    EXPECT_EQ(s[0].argmax, 0);
    for (int row : {1, 4}) {
      EXPECT_TRUE(std::isnan(s[row].lse) && std::isnan(s[row].entropy));
      EXPECT_TRUE(std::isnan(s[row].max_prob) && std::isnan(s[row].margin));
    }
    EXPECT_EQ(s[2].argmax, 4);
    EXPECT_EQ(s[2].margin, 0.0f);
    EXPECT_NEAR(s[2].entropy, std::log(4.0), 1e-6);
    EXPECT_LT(s[3].entropy, 1e-30f);
    EXPECT_EQ(s[3].max_prob, 1.0f);
    EXPECT_EQ(s[3].argmax, 9);
  }
}

// case R01
TYPED_TEST(RowKernels, StatisticsOfANanOrPlusInfinityAreNan) {
  const int64_t vocab = 5003;
  const auto plain = draw<TypeParam>(vocab, 4);
  for (float value : {std::numeric_limits<float>::quiet_NaN(), kInf}) {
    for (int64_t place : {0, 3, 1234, 5002}) {
      auto x = plain;
      x[place] = from_float<TypeParam>(value);
      for (int splits : {1, 3}) {
        const auto s = statistics(x, vocab, splits)[0];
        EXPECT_TRUE(std::isnan(s.lse) && std::isnan(s.entropy)) << value << " at " << place;
        EXPECT_TRUE(std::isnan(s.max_prob) && std::isnan(s.margin)) << value << " at " << place;
      }
    }
  }
}

// case R01
TEST(RowKernel, EntropyAdjointOfARowWithoutWeightIsZero) {
  const int64_t vocab = 600, rows = 2;
  std::vector<float> logits(rows * vocab, 1.0f);
  logits[3] = std::numeric_limits<float>::quiet_NaN();
  logits[4] = kInf;
  logits[vocab + 9] = -kInf;
  const auto s = statistics(logits, vocab, 1);
  std::vector<float> max_prob{s[0].max_prob, s[1].max_prob}, entropy{s[0].entropy, s[1].entropy},
      weight{0.0f, 1.0f}, top(rows);
  std::vector<int64_t> argmax{s[0].argmax, s[1].argmax};
  const EntropyParams p{logits.data(),   rows,           vocab,         argmax.data(),
                        max_prob.data(), entropy.data(), weight.data(), top.data()};
  EXPECT_EQ(launch_entropy_adjoint(p, Number::fp32, nullptr), 0);
  for (int64_t v = 0; v < vocab; ++v) ASSERT_EQ(logits[v], 0.0f) << v;
  EXPECT_EQ(logits[vocab + 9], 0.0f);
}

TYPED_TEST(RowKernels, EntropyAdjointIsTheDerivative) {
  const int64_t vocab = 2500, rows = 3;
  auto logits = draw<TypeParam>(rows * vocab, 3);
  logits[7] = from_float<TypeParam>(-kInf);
  logits[vocab + 5] = from_float<TypeParam>(20);  // a row that is almost certain
  const auto before = logits;
  const auto s = statistics(logits, vocab, 1);
  std::vector<float> max_prob, entropy, weight{1.0f, -2.5f, 0.5f}, top(rows);
  std::vector<int64_t> argmax;
  for (const auto& row : s) {
    max_prob.push_back(row.max_prob);
    entropy.push_back(row.entropy);
    argmax.push_back(row.argmax);
  }
  const EntropyParams p{logits.data(),   rows,           vocab,         argmax.data(),
                        max_prob.data(), entropy.data(), weight.data(), top.data()};
  const Backwards backwards;
  EXPECT_EQ(launch_entropy_adjoint(p, kNumber<TypeParam>, nullptr), 0);
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0, h = 0;
    const auto x = [&](int64_t v) { return double{to_float(before[r * vocab + v])}; };
    for (int64_t v = 0; v < vocab; ++v) sum += std::exp(x(v));
    for (int64_t v = 0; v < vocab; ++v) {
      const double p = std::exp(x(v)) / sum;
      if (p > 0) h -= p * std::log(p);
    }
    for (int64_t v = 0; v < vocab; ++v) {
      const double p = std::exp(x(v)) / sum;
      const double wanted = p > 0 ? -weight[r] * p * (std::log(p) + h) : 0.0;
      const double limit = kRounding<TypeParam> * std::abs(wanted) + 2e-6 * p + 4e-8;
      ASSERT_NEAR(to_float(logits[r * vocab + v]), wanted, limit) << r << ", " << v;
    }
  }
}

TYPED_TEST(RowKernels, RmsNormAndItsAdjoint) {
  for (int width : {1, 33, 128, 600}) {
    const int64_t rows = 9, stride = width + 3;
    const auto x = draw<TypeParam>(rows * stride, 2), grad = draw<TypeParam>(rows * width, 1, 2);
    const auto weight = draw<float>(width, 1, 3);
    std::vector<TypeParam> y(rows * width), dx(rows * width);
    NormParams p{x.data(), grad.data(), stride, rows, width, weight.data(), y.data(), 1e-5f};
    EXPECT_EQ(launch_rms_norm(p, kNumber<TypeParam>, nullptr), 0);
    p.out = dx.data();
    const Backwards backwards;
    EXPECT_EQ(launch_rms_norm_backward(p, kNumber<TypeParam>, nullptr), 0);
    for (int64_t r = 0; r < rows; ++r) {
      const auto at = [&](int i) { return double{to_float(x[r * stride + i])}; };
      const auto down = [&](int i) { return to_float(grad[r * width + i]) * double{weight[i]}; };
      double squares = 0, dot = 0;
      for (int i = 0; i < width; ++i) {
        squares += at(i) * at(i);
        dot += at(i) * down(i);
      }
      const double s = 1 / std::sqrt(squares / width + 1e-5);
      for (int i = 0; i < width; ++i) {
        const double wanted = at(i) * s * weight[i];
        const double slope = s * down(i) - at(i) * s * s * s / width * dot;
        ASSERT_NEAR(to_float(y[r * width + i]), wanted,
                    (kRounding<TypeParam> + 1e-6) * std::abs(wanted) + 1e-6);
        // The two terms can cancel.
        ASSERT_NEAR(
            to_float(dx[r * width + i]), slope,
            (kRounding<TypeParam> + 1e-6) * std::abs(slope) + 2e-6 * (std::abs(s * down(i)) + 1));
      }
    }
  }
}

TYPED_TEST(RowKernels, RotationAndItsInverse) {
  const int64_t rows = 5, heads = 2, half = 24, stride = 3 * 2 * half, table = 9;
  const auto angle = draw<float>(table * half, 2, 4);
  std::vector<float> c(angle.size()), s(angle.size());
  for (size_t i = 0; i < angle.size(); ++i) c[i] = std::cos(angle[i]), s[i] = std::sin(angle[i]);
  const std::vector<int64_t> positions{3, 0, 8, 3, 9};  // the last lies outside the table
  const auto before = draw<TypeParam>(rows * stride, 1);
  for (bool inverse : {false, true}) {
    auto x = before;
    const RopeParams p{x.data(), stride,           rows,   heads, half, c.data(), s.data(),
                       table,    positions.data(), inverse};
    EXPECT_EQ(launch_rope(p, kNumber<TypeParam>, nullptr), 0);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < stride; ++i) {
        const double old = to_float(before[r * stride + i]), got = to_float(x[r * stride + i]);
        const int64_t j = i % half, pair = i % (2 * half) < half ? i + half : i - half;
        if (i >= heads * 2 * half) {
          ASSERT_EQ(got, old);
        } else if (positions[r] >= table) {
          ASSERT_TRUE(std::isnan(got));
        } else {
          const int64_t at = positions[r] * half + j;
          const double sign = (i % (2 * half) < half ? -1.0 : 1.0) * (inverse ? -1.0 : 1.0);
          const double other = to_float(before[r * stride + pair]);
          const double wanted = old * c[at] + sign * other * s[at];
          ASSERT_NEAR(got, wanted, kRounding<TypeParam> * std::abs(wanted) + 1e-6);
        }
      }
    }
  }
}

TYPED_TEST(RowKernels, GatesAndTheirAdjoints) {
  const int64_t rows = 3, width = 100;
  const auto x = draw<TypeParam>(rows * 2 * width, 3), grad = draw<TypeParam>(rows * width, 1, 2);
  for (bool gelu : {false, true}) {
    std::vector<TypeParam> y(rows * width), dx(rows * 2 * width);
    GatedParams p{x.data(), grad.data(), y.data(), rows, width, gelu};
    EXPECT_EQ(launch_gated(p, kNumber<TypeParam>, nullptr), 0);
    p.out = dx.data();
    EXPECT_EQ(launch_gated_backward(p, kNumber<TypeParam>, nullptr), 0);
    const auto act = [&](double v) {
      return gelu ? v * 0.5 * (1 + std::erf(v / std::sqrt(2.0))) : v / (1 + std::exp(-v));
    };
    for (int64_t i = 0; i < rows * width; ++i) {
      const int64_t at = i / width * 2 * width + i % width;
      const double v = to_float(x[at]), up = to_float(x[at + width]), g = to_float(grad[i]);
      const double slope = (act(v + 1e-5) - act(v - 1e-5)) / 2e-5;
      const auto near = [&](TypeParam got, double wanted) {
        ASSERT_NEAR(to_float(got), wanted, kRounding<TypeParam> * std::abs(wanted) + 4e-6);
      };
      near(y[i], act(v) * up);
      near(dx[at], g * up * slope);
      near(dx[at + width], g * act(v));
    }
  }
}

// The share of (0, 1) that belongs to each token, cut as sample_rows cuts.
struct Shares {
  std::vector<double> from, to;
};
Shares shares(const std::vector<double>& weight, int64_t top_k, double top_p) {
  const size_t n = weight.size();
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  size_t kept = n;
  double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  if (top_k > 0 || top_p < 1) {
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return weight[a] > weight[b]; });
    if (top_k > 0) kept = std::min<size_t>(n, top_k);
    total = 0;
    for (size_t i = 0; i < kept; ++i) total += weight[order[i]];
    double sum = 0;
    size_t reached = 0;
    while (reached < kept && (reached == 0 || sum < top_p * total)) sum += weight[order[reached++]];
    kept = reached;
    total = sum;
  }
  Shares s{std::vector<double>(n, 2), std::vector<double>(n, -1)};
  double sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    s.from[order[i]] = sum / total;
    sum += weight[order[i]];
    s.to[order[i]] = sum / total;
  }
  return s;
}

struct Cuts {
  int64_t top_k;
  double top_p;
};

TYPED_TEST(RowKernels, SamplesInvertTheDistribution) {
  const int64_t vocab = 700, rows = 24;
  const float temperature = 0.8f;
  auto row = draw<TypeParam>(vocab, 2);
  for (int i = 0; i < 60; ++i) row[(i * 37) % vocab] = from_float<TypeParam>(2.0f);  // ties
  row[11] = from_float<TypeParam>(-kInf);
  std::vector<TypeParam> logits;
  std::vector<double> uniforms;
  for (int64_t r = 0; r < rows; ++r) {
    logits.insert(logits.end(), row.begin(), row.end());
    uniforms.push_back(counter_uniform(5, Stream::token, r, 0, 0));
  }
  uniforms[0] = 1e-14;
  uniforms[1] = 1 - 1e-14;
  std::vector<double> weight(vocab);
  for (int64_t v = 0; v < vocab; ++v) weight[v] = std::exp(to_float(row[v]) / double{temperature});
  for (const Cuts& cuts : {Cuts{0, 1.0}, Cuts{1, 1.0}, Cuts{30, 1.0}, Cuts{0, 0.6}, Cuts{90, 0.85},
                           Cuts{5000, 0.999}}) {
    const Shares wanted = shares(weight, cuts.top_k, cuts.top_p);
    std::vector<int64_t> tokens(rows, -1);
    const SampleParams p{logits.data(), uniforms.data(),    tokens.data(), rows,
                         vocab,         1.0f / temperature, cuts.top_k,    cuts.top_p};
    simt::schedule.backwards = cuts.top_k == 30;
    EXPECT_EQ(launch_sample(p, kNumber<TypeParam>, nullptr), 0);
    simt::schedule = {};
    for (int64_t r = 0; r < rows; ++r) {
      ASSERT_GE(tokens[r], 0);
      ASSERT_LT(tokens[r], vocab);
      // Weights are rounded to float32.
      EXPECT_GE(uniforms[r], wanted.from[tokens[r]] - 1e-6) << cuts.top_k << " " << cuts.top_p;
      EXPECT_LE(uniforms[r], wanted.to[tokens[r]] + 1e-6) << cuts.top_k << " " << cuts.top_p;
    }
  }
}

// case F17
TYPED_TEST(RowKernels, SamplesAreRightAtTheEndsOfTheTemperature) {
  const int64_t vocab = 40, rows = 37;
  std::vector<TypeParam> logits;
  std::vector<double> uniforms;
  for (int64_t r = 0; r < rows; ++r) {
    uniforms.push_back((static_cast<double>(r) + 0.5) / rows);
    for (int64_t v = 0; v < vocab; ++v) {
      const float x = v % 13 == 0 ? -kInf : static_cast<float>(v % 7);  // four can not be drawn
      logits.push_back(from_float<TypeParam>(v == 17 ? 9.0f : x));
    }
  }
  for (const Cuts& cuts : {Cuts{0, 1.0}, Cuts{38, 0.99}}) {
    const auto drawn = [&](float inverse_temperature) {
      std::vector<int64_t> tokens(rows, -1);
      const SampleParams p{logits.data(), uniforms.data(),     tokens.data(), rows,
                           vocab,         inverse_temperature, cuts.top_k,    cuts.top_p};
      EXPECT_EQ(launch_sample(p, kNumber<TypeParam>, nullptr), 0);
      return tokens;
    };
    const auto hot = drawn(std::numeric_limits<float>::min());
    EXPECT_GE(std::set<int64_t>(hot.begin(), hot.end()).size(), 35u);  // of 36 alike
    for (int64_t token : hot) EXPECT_NE(token % 13, 0);
    for (int64_t token : drawn(std::numeric_limits<float>::max())) EXPECT_EQ(token, 17);
  }
}

TEST(RowKernel, UniformsAreNamedBySequencePositionAndStep) {
  const std::vector<int64_t> sequences{0, 3, 3}, positions{7, 7, 9}, steps{5, 5, 2};
  std::vector<double> out(3);
  const UniformParams p{42,
                        static_cast<uint32_t>(Stream::order),
                        sequences.data(),
                        positions.data(),
                        steps.data(),
                        3,
                        out.data()};
  EXPECT_EQ(launch_uniforms(p, nullptr), 0);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(out[i], counter_uniform(42, Stream::order, sequences[i], positions[i], steps[i]));
  }
}

}  // namespace
}  // namespace tabes::gpu
