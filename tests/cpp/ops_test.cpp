// Operators against plain float64 arithmetic, at widths around every vector size.
#include "ops/ops.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "random/philox.h"

namespace tabes {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double tolerance(at::ScalarType type) {
  return type == at::kDouble ? 1e-12 : type == at::kFloat ? 2e-6 : 1.6e-2;
}

void expect_close(const at::Tensor& got, const at::Tensor& wanted, double limit) {
  ASSERT_EQ(got.sizes(), wanted.sizes());
  const double worst = (got.to(at::kDouble) - wanted.to(at::kDouble)).abs().max().item<double>();
  EXPECT_LE(worst, limit);
}

class OpsOf : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override { at::manual_seed(7); }
  at::TensorOptions options() const { return at::TensorOptions().dtype(GetParam()); }
  at::ScalarType real() const { return GetParam() == at::kDouble ? at::kDouble : at::kFloat; }
};
INSTANTIATE_TEST_SUITE_P(Ops, OpsOf, testing::Values(at::kFloat, at::kDouble, at::kBFloat16));

TEST_P(OpsOf, RmsNormMatchesItsDefinition) {
  for (int64_t width : {1, 7, 8, 16, 31, 256, 300}) {
    const at::Tensor wide = at::randn({5, width + 3}, at::kDouble).to(options());
    const at::Tensor x = wide.narrow(1, 0, width);  // rows further apart than they are wide
    const at::Tensor w = at::randn({width}, real());
    const at::Tensor d = x.to(at::kDouble);
    const at::Tensor wanted = d / (d.pow(2).mean(1, true) + 1e-5).sqrt() * w.to(at::kDouble);
    expect_close(ops::rms_norm(x, w, 1e-5), wanted,
                 tolerance(GetParam()) * std::max(1.0, wanted.abs().max().item<double>()));
  }
}

TEST_P(OpsOf, RopeRotatesTheFirstHeadsOnly) {
  const int64_t half = 5, heads = 2;
  at::Tensor x = at::randn({4, 3 * 2 * half}, at::kDouble).to(options());
  const at::Tensor angle = at::randn({9, half}, at::kDouble);
  const at::Tensor positions = at::tensor({3, 0, 8, 3}, at::kLong);
  const at::Tensor c = angle.cos().index_select(0, positions).unsqueeze(1);
  const at::Tensor s = angle.sin().index_select(0, positions).unsqueeze(1);
  const at::Tensor d = x.to(at::kDouble).view({4, 3, 2 * half});
  const at::Tensor a = d.narrow(2, 0, half), b = d.narrow(2, half, half);
  at::Tensor wanted = at::cat({a * c - b * s, b * c + a * s}, 2);
  wanted.narrow(1, heads, 1).copy_(d.narrow(1, heads, 1));
  ops::rope_(x, heads, angle.cos().to(real()), angle.sin().to(real()), positions);
  expect_close(x.view({4, 3, 2 * half}), wanted, 2 * tolerance(GetParam()));
}

TEST_P(OpsOf, GatedMatchesItsDefinition) {
  for (int64_t width : {1, 15, 16, 33}) {
    const at::Tensor x = (3 * at::randn({4, 2 * width}, at::kDouble)).to(options());
    const at::Tensor d = x.to(at::kDouble);
    const at::Tensor g = d.narrow(1, 0, width), u = d.narrow(1, width, width);
    expect_close(ops::gated(x, "silu"), at::silu(g) * u, 30 * tolerance(GetParam()));
    expect_close(ops::gated(x, "gelu"), at::gelu(g) * u, 30 * tolerance(GetParam()));
  }
}

TEST_P(OpsOf, RowStatisticsMatchTheirDefinitions) {
  for (int64_t vocab : {1, 2, 17, 2047, 2048, 2049, 5000}) {
    at::Tensor logits = (4 * at::randn({6, vocab}, at::kDouble)).to(options());
    if (vocab > 2) logits.select(1, 1).fill_(-kInfinity);  // a forbidden token is normal input
    const ops::RowStatistics s = ops::row_statistics(logits);
    const at::Tensor logp = at::log_softmax(logits.to(at::kDouble), 1);
    const at::Tensor p = logp.exp();
    const at::Tensor entropy = -(p * logp.nan_to_num(0.0, 0.0, 0.0)).sum(1);
    // The statistics are computed in float32 from exact bfloat16 inputs.
    const double limit = GetParam() == at::kDouble ? 1e-10 : 2e-5;
    expect_close(s.entropy, entropy, limit);
    expect_close(s.lse, at::logsumexp(logits.to(at::kDouble), 1), limit);
    expect_close(s.max_prob, std::get<0>(p.max(1)), limit);
    if (vocab > 1) {
      const at::Tensor top = std::get<0>(p.topk(2, 1));
      expect_close(s.margin, top.select(1, 0) - top.select(1, 1), limit);
    }
    EXPECT_TRUE(at::equal(s.argmax, logits.to(at::kDouble).argmax(1)));
  }
}

TEST(Ops, RowStatisticsOfDegenerateRows) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor rows = at::tensor({-kInfinity, -kInfinity, -kInfinity, -kInfinity,  //
                                      1.0, nan, 0.0, 0.0,                              //
                                      2.0, 2.0, 1.0, 2.0,                              //
                                      -kInfinity, 5.0, -kInfinity, -kInfinity},
                                     at::kDouble)
                              .view({4, 4})
                              .to(at::kFloat);
  const ops::RowStatistics s = ops::row_statistics(rows);
  EXPECT_TRUE(std::isnan(s.entropy[0].item<double>()));  // nothing to choose from
  EXPECT_TRUE(std::isnan(s.entropy[1].item<double>()));
  EXPECT_EQ(s.argmax[2].item<int64_t>(), 0);  // ties: the lowest index
  EXPECT_EQ(s.margin[2].item<double>(), 0.0);
  EXPECT_LT(s.entropy[3].item<double>(), 1e-30);  // what exp of the clamp leaves
  EXPECT_EQ(s.max_prob[3].item<double>(), 1.0);
  EXPECT_EQ(s.argmax[3].item<int64_t>(), 1);
}

// case R01
TEST(Ops, RowStatisticsOfANanOrPlusInfinityAreNan) {
  // In the first vector, in the middle of a block, in a later block and among the last lanes.
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const double value : {std::numeric_limits<double>::quiet_NaN(), kInfinity}) {
      for (const int64_t place : {0, 5, 1000, 2047, 2048, 4099}) {
        at::Tensor rows = at::randn({3, 4100}).to(type);
        rows[1][place] = value;
        rows[2].fill_(value);
        const ops::RowStatistics s = ops::row_statistics(rows);
        for (const at::Tensor& t : {s.lse, s.entropy, s.max_prob, s.margin}) {
          EXPECT_TRUE(t[0].isfinite().item<bool>());
          EXPECT_TRUE(t[1].isnan().item<bool>()) << type << value << " at " << place;
          EXPECT_TRUE(t[2].isnan().item<bool>()) << type << value << " at " << place;
        }
        EXPECT_LT(s.argmax[1].item<int64_t>(), 4100);
      }
    }
  }
}

// case R01
TEST(Ops, TheEntropysDerivativeIsZeroWhereProbabilityOrWeightIs) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    at::Tensor rows = at::tensor({1.0, -kInfinity, 0.0, -kInfinity,         // two tokens
                                  -kInfinity, 5.0, -kInfinity, -kInfinity,  // one
                                  nan, 1.0, kInfinity, 0.0},                // of no weight
                                 at::kDouble)
                          .view({3, 4})
                          .to(type);
    const ops::RowStatistics s = ops::row_statistics(rows);
    const at::Tensor weight = at::tensor({2.0, 1.0, 0.0}, s.lse.options());
    ops::entropy_adjoint_(rows, s.argmax, s.max_prob, s.entropy, weight);
    const double p = 1 / (1 + std::exp(-1.0)), h = -p * std::log(p) - (1 - p) * std::log(1 - p);
    const double d = -2 * p * (std::log(p) + h);  // of the likelier; the other's is the opposite
    const at::Tensor wanted =
        at::tensor({d, 0.0, -d, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}, at::kDouble)
            .view({3, 4});
    const double limit = type == at::kBFloat16 ? 4e-3 : 2e-6;
    EXPECT_TRUE(at::allclose(rows.to(at::kDouble), wanted, limit, limit)) << rows << wanted;
  }
}

// Chi-square of draws against the distribution that the cuts leave.
double chi_square(const at::Tensor& logits, const at::Tensor& expected, double temperature,
                  int64_t top_k, double top_p) {
  const int64_t draws = 20000;
  at::Tensor u = at::empty({draws}, at::kDouble);
  for (int64_t i = 0; i < draws; ++i) {
    u[i] = counter_uniform(11, Stream::token, 0, i, 0);
  }
  const at::Tensor tokens =
      ops::sample_rows(logits.expand({draws, -1}).contiguous(), u, temperature, top_k, top_p);
  const at::Tensor seen = at::bincount(tokens, {}, logits.size(0)).to(at::kDouble);
  double total = 0;
  for (int64_t v = 0; v < logits.size(0); ++v) {
    const double e = expected[v].item<double>() * draws, o = seen[v].item<double>();
    if (e == 0) {
      EXPECT_EQ(o, 0) << "token " << v << " was cut but drawn";
    } else {
      total += (o - e) * (o - e) / e;
    }
  }
  return total;
}

TEST(Ops, SampleRowsFollowsTheDistribution) {
  const at::Tensor logits = at::tensor({1.0, 0.0, 2.0, -kInfinity, 1.5, 0.5}, at::kDouble);
  const at::Tensor tempered = at::softmax(logits / 0.7, 0);
  // 20.5 is the 0.999 quantile of chi-square with 5 degrees of freedom; draws are fixed.
  EXPECT_LT(chi_square(logits, tempered, 0.7, 0, 1.0), 20.5);
  at::Tensor top3 = at::softmax(logits, 0);
  for (int64_t v : {1, 5}) top3[v] = 0.0;
  top3 /= top3.sum();
  EXPECT_LT(chi_square(logits, top3, 1.0, 3, 1.0), 20.5);
  // 0.43 + 0.26 passes 0.6, and the token that crosses it is kept.
  at::Tensor top_p = at::softmax(logits, 0);
  for (int64_t v : {0, 1, 5}) top_p[v] = 0.0;
  top_p /= top_p.sum();
  EXPECT_LT(chi_square(logits, top_p, 1.0, 0, 0.6), 20.5);
}

TEST(Ops, PhiloxGivesThePublishedBits) {
  // Known answers of the reference implementation (Random123's kat_vectors).
  const PhiloxBlock zero = philox(0, 0, 0);
  EXPECT_EQ(zero.v[0], 0x6627e8d5u);
  EXPECT_EQ(zero.v[1], 0xe169c58du);
  EXPECT_EQ(zero.v[2], 0xbc57ac4cu);
  EXPECT_EQ(zero.v[3], 0x9b00dbd8u);
  const PhiloxBlock ones = philox(~0ull, ~0ull, ~0ull);
  EXPECT_EQ(ones.v[0], 0x408f276du);
  EXPECT_EQ(ones.v[1], 0x41c83b0eu);
  EXPECT_EQ(ones.v[2], 0xa20bc7c6u);
  EXPECT_EQ(ones.v[3], 0x6d5451fdu);
}

TEST(Ops, AttentionOfRaggedSequencesMatchesOneAtATime) {
  at::manual_seed(3);
  for (at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const std::vector<int64_t> cu_k{0, 5, 10, 13, 14}, cu_q{0, 2, 4, 4, 5};
    const at::Tensor q = at::randn({5, 4, 8}).to(type), k = at::randn({14, 2, 8}).to(type),
                     v = at::randn({14, 2, 8}).to(type);
    const at::Tensor got = ops::attention(q, k, v, cu_q, cu_k, 0.3);
    for (size_t b = 0; b < 4; ++b) {
      for (int64_t h = 0; h < 4; ++h) {
        const auto part = [&](const at::Tensor& t, const std::vector<int64_t>& cu, int64_t head) {
          return t.narrow(0, cu[b], cu[b + 1] - cu[b]).select(1, head).to(at::kDouble);
        };
        if (cu_q[b] == cu_q[b + 1]) continue;
        const at::Tensor score = at::matmul(part(q, cu_q, h), part(k, cu_k, h / 2).t()) * 0.3;
        const at::Tensor wanted = at::matmul(score.softmax(1), part(v, cu_k, h / 2));
        expect_close(got.narrow(0, cu_q[b], cu_q[b + 1] - cu_q[b]).narrow(1, h * 8, 8), wanted,
                     2 * tolerance(type));
      }
    }
  }
}

TEST(Ops, KeptAttentionIsAttention) {
  at::manual_seed(4);
  const std::vector<int64_t> cu{0, 5, 7};
  const at::Tensor q = at::randn({7, 4, 8}), k = at::randn({7, 2, 8}), v = at::randn({7, 2, 8});
  const ops::KeptAttention kept = ops::attention_kept(q, k, v, cu, cu, 0.3);
  EXPECT_TRUE(at::equal(kept.out, ops::attention(q, k, v, cu, cu, 0.3)));
  EXPECT_FALSE(kept.lse.defined());  // the CPU's adjoint has no use for it
}

TEST(Ops, AKeptResultNeedsItsLogSumExp) {
  const at::Tensor q = at::randn({2, 1, 8}), keys = at::tensor({0, 1}, at::kLong);
  const std::vector<int64_t> cu{0, 2};
  const auto adjoint = [&](const std::optional<at::Tensor>& lse) {
    return ops::active_query_attention_backward(q.flatten(1), q, q, q, keys, cu, cu, cu, 0.3,
                                                std::nullopt, std::nullopt, {}, q.flatten(1), lse);
  };
  EXPECT_THROW(adjoint(std::nullopt), c10::Error);
  EXPECT_THROW(adjoint(at::zeros({2, 1}, at::kDouble)), c10::Error);
  EXPECT_EQ(adjoint(at::zeros({2, 1})).dq.size(0), 2);
}

}  // namespace
}  // namespace tabes
