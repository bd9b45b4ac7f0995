// The adjoint of the native transformer against finite differences, in every kind of model a
// description can ask for.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "batch/rows.h"
#include "batch/select.h"
#include "random_models.h"
#include "steering/score.h"
#include "tabes/boe.h"
#include "tabes/error.h"
#include "tabes/influence.h"
#include "tabes/transformer.h"

namespace tabes {
namespace {

class AdjointOf : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    at::manual_seed(3);
    model = build(at::kDouble);
    // Two sequences of different lengths, the second with a single candidate.
    batch.tokens = at::randint(4, 23, {19}, at::kLong);
    for (int64_t row : {0, 2, 3, 5, 8, 9, 12, 13, 17, 18}) batch.tokens[row] = 3;
    batch.cu_seqlens = {0, 11, 19};
    candidates = row_set({2, 5, 17}, {0, 2, 3}, at::kCPU);
    probes = row_set({0, 3, 9, 12, 13}, {0, 3, 5}, at::kCPU);
    forbidden = at::tensor({3, 7}, at::kLong);
    // A shifted model needs the rows before its probes as well.
    active = row_set({0, 2, 3, 5, 8, 9, 11, 12, 13, 17}, {0, 6, 10}, at::kCPU);
    offset = at::randn({3, 16}, at::kDouble) * 0.5;
    weight = at::rand({5}, at::kDouble) + 0.5;
  }
  std::shared_ptr<const Denoiser> build(at::ScalarType type) {
    at::manual_seed(11);
    RandomWeights weights;
    return make_transformer(GetParam().config, weights, at::kCPU, type);
  }
  std::unique_ptr<Context> base(const Denoiser& m) {
    std::unique_ptr<Context> context;
    m.encode(batch, all_rows(batch), {}, &context);
    return context;
  }
  EntropyGradient ask(const Denoiser& m, const RowSet& rows, const at::Tensor& at_offset,
                      Context* frozen = nullptr) {
    return m.entropy_gradient(
        {batch, rows, candidates, probes, at_offset, weight, forbidden, frozen, {}});
  }

  std::shared_ptr<const Denoiser> model;
  PackedBatch batch;
  RowSet candidates, probes, active;
  at::Tensor forbidden, offset, weight;
};
INSTANTIATE_TEST_SUITE_P(Adjoint, AdjointOf, testing::ValuesIn(kinds()),
                         [](const auto& info) { return info.param.name; });

// The derivative along a direction, measured on the entropies alone (fourth order).
double measured(const std::function<at::Tensor(const at::Tensor&)>& entropy, const at::Tensor& at,
                const at::Tensor& direction, const at::Tensor& weight) {
  const double h = 1e-4;
  const auto f = [&](double t) {
    return (entropy(at + direction * t) * weight).sum().item<double>();
  };
  return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h);
}

TEST_P(AdjointOf, DenseGradientIsTheDerivativeOfTheEntropy) {
  const RowSet all = all_rows(batch);
  const EntropyGradient g = ask(*model, all, offset);
  for (int trial = 0; trial < 3; ++trial) {
    const at::Tensor d = at::randn({3, 16}, at::kDouble);
    const double wanted = measured([&](const at::Tensor& o) { return ask(*model, all, o).entropy; },
                                   offset, d, weight);
    EXPECT_NEAR((g.gradient * d).sum().item<double>(), wanted, 1e-7 * (1 + std::abs(wanted)));
  }
  EXPECT_EQ(g.cost.backward_rows, 19);
}

TEST_P(AdjointOf, FrozenGradientIsTheDerivativeOfTheFrozenFunction) {
  const auto context = base(*model);
  const EntropyGradient g = ask(*model, active, offset, context.get());
  const at::Tensor d = at::randn({3, 16}, at::kDouble);
  const double wanted =
      measured([&](const at::Tensor& o) { return ask(*model, active, o, context.get()).entropy; },
               offset, d, weight);
  EXPECT_NEAR((g.gradient * d).sum().item<double>(), wanted, 1e-7 * (1 + std::abs(wanted)));
  EXPECT_EQ(g.cost.forward_rows, 10);
  EXPECT_EQ(g.cost.backward_rows, 10);
}

TEST_P(AdjointOf, FrozenEqualsActiveAtTheBaseState) {
  const auto context = base(*model);
  const at::Tensor zero = at::zeros({3, 16}, at::kDouble);
  const EntropyGradient frozen = ask(*model, active, zero, context.get());
  const EntropyGradient exact = ask(*model, active, zero);
  const double scale = exact.gradient.abs().max().item<double>();
  EXPECT_LE((frozen.gradient - exact.gradient).abs().max().item<double>(), 1e-12 * scale);
  EXPECT_LE((frozen.entropy - exact.entropy).abs().max().item<double>(), 1e-12);
  // Elsewhere the inactive rows answer to the changed embeddings, from the second layer on.
  const auto again = base(*model);
  const double difference =
      (ask(*model, active, offset, again.get()).gradient - ask(*model, active, offset).gradient)
          .abs()
          .max()
          .item<double>();
  if (GetParam().config.num_layers == 1) {
    EXPECT_LE(difference, 1e-12);
  } else {
    EXPECT_GT(difference, 1e-6);
  }
}

TEST_P(AdjointOf, Float32FollowsFloat64) {
  const auto single = build(at::kFloat);
  const at::Tensor wanted = ask(*model, active, offset).gradient;
  const at::Tensor got = single
                             ->entropy_gradient({batch,
                                                 active,
                                                 candidates,
                                                 probes,
                                                 offset.to(at::kFloat),
                                                 weight.to(at::kFloat),
                                                 forbidden,
                                                 nullptr,
                                                 {}})
                             .gradient.to(at::kDouble);
  // The two models hold the same draws, rounded.
  EXPECT_LE((got - wanted).norm().item<double>(), 1e-5 * wanted.norm().item<double>());
}

TEST_P(AdjointOf, ASequenceDoesNotSeeItsNeighbours) {
  const at::Tensor together = ask(*model, active, offset).gradient;
  const PackedBatch alone{batch.tokens.narrow(0, 0, 11).contiguous(), {0, 11}};
  const RowSet c = row_set({2, 5}, {0, 2}, at::kCPU), p = row_set({0, 3, 9}, {0, 3}, at::kCPU);
  const RowSet a = row_set({0, 2, 3, 5, 8, 9}, {0, 6}, at::kCPU);
  const at::Tensor single = model
                                ->entropy_gradient({alone,
                                                    a,
                                                    c,
                                                    p,
                                                    offset.narrow(0, 0, 2),
                                                    weight.narrow(0, 0, 3),
                                                    forbidden,
                                                    nullptr,
                                                    {}})
                                .gradient;
  EXPECT_TRUE(at::allclose(together.narrow(0, 0, 2), single, 1e-10, 1e-12));
}

TEST_P(AdjointOf, AGradientLeavesTheContextAsItFoundIt) {
  const auto context = base(*model);
  const EntropyGradient first = ask(*model, active, offset, context.get());
  ask(*model, all_rows(batch), offset, context.get());
  const EntropyGradient again = ask(*model, active, offset, context.get());
  EXPECT_TRUE(at::equal(first.gradient, again.gradient));
  EXPECT_TRUE(at::equal(first.entropy, again.entropy));
}

TEST_P(AdjointOf, FrozenPassesFollowTheTokensOfActiveRows) {
  const auto context = base(*model);
  const at::Tensor before = model->encode(batch, probes);
  // Nothing has changed: the rows are computed anew from the same keys and values.
  const at::Tensor same = model->encode_active(batch, active, probes, *context);
  EXPECT_TRUE(at::allclose(same, before, 1e-9, 1e-11));
  // With every row active a frozen pass is a full one, and the context then that of the pass.
  PackedBatch changed{batch.tokens.clone(), batch.cu_seqlens};
  changed.tokens.index_fill_(0, candidates.rows, 5);
  const at::Tensor full = model->encode(changed, probes);
  EXPECT_TRUE(at::allclose(model->encode_active(changed, all_rows(changed), probes, *context), full,
                           1e-9, 1e-11));
  EXPECT_TRUE(
      at::allclose(model->encode_active(changed, active, probes, *context), full, 1e-9, 1e-11));
  EXPECT_FALSE(at::allclose(full, before, 1e-6, 1e-8));
  // A context keeps the sequences that are asked for.
  const int64_t cut = batch.cu_seqlens[1];
  context->select(at::arange(cut, batch.rows()));
  const PackedBatch second{changed.tokens.narrow(0, cut, batch.rows() - cut).contiguous(),
                           {0, batch.rows() - cut}};
  const auto of_second = [&](const RowSet& rows) {
    const int64_t from = rows.cu_rows[1], count = rows.cu_rows[2] - from;
    return RowSet{rows.rows.narrow(0, from, count) - cut, {0, count}};
  };
  EXPECT_TRUE(at::allclose(
      model->encode_active(second, of_second(active), of_second(probes), *context),
      full.narrow(0, probes.cu_rows[1], probes.cu_rows[2] - probes.cu_rows[1]), 1e-9, 1e-11));
}

TEST(BoEScore, MinmaxScalesToTheUnitInterval) {
  EXPECT_EQ(minmax({2.0, 6.0, 3.0}), (std::vector<double>{0.0, 1.0, 0.25}));
  EXPECT_EQ(minmax({-1.5, -1.5}), (std::vector<double>{1.0, 1.0}));
  EXPECT_EQ(minmax({4.0}), (std::vector<double>{1.0}));
  EXPECT_TRUE(minmax({}).empty());
}

TEST(BoEScore, MatchesHandWorkedCases) {
  // Confidence 0.5, 0.8, 0.9; influence 1, 3, 2 scales to 0, 1, 1/2. Entropies 0.1, 0.25, 0.4
  // under a floor of 0.3 fall short by 0.2, 0.05 and nothing.
  const std::vector<double> c{0.5, 0.8, 0.9}, t{1, 3, 2}, h{0.1, 0.25, 0.4};
  const auto plain = boe_scores(c, t, h, {1.0, 0.0, 0.3});
  EXPECT_DOUBLE_EQ(plain[0], 0.0);
  EXPECT_DOUBLE_EQ(plain[1], 0.8);
  EXPECT_DOUBLE_EQ(plain[2], 0.45);
  const auto penalised = boe_scores(c, t, h, {2.0, 10.0, 0.3});
  EXPECT_NEAR(penalised[0], 0.0 - 10.0 * 0.04, 1e-12);
  EXPECT_NEAR(penalised[1], 0.64 - 10.0 * 0.0025, 1e-12);
  EXPECT_NEAR(penalised[2], 0.81 * 0.5, 1e-12);
  const auto unweighted = boe_scores(c, t, h, {0.0, 0.0, 0.3});
  EXPECT_DOUBLE_EQ(unweighted[2], 0.5);
  const auto nats = boe_scores(c, t, h, {1.0, 0.0, 0.3, 2.0});
  EXPECT_DOUBLE_EQ(nats[1], std::log(0.8) + 6.0);
}

TEST(BoEScore, TheFactorRuleCountsByHand) {
  // With f = 1 the second needs 2/3, the third 3/4, the fourth 4/5.
  EXPECT_EQ(within_factor({0.1, 0.1}, 1.0), 1);
  EXPECT_EQ(within_factor({0.9, 0.7, 0.75, 0.79}, 1.0), 3);
  EXPECT_EQ(within_factor({0.9, 0.6, 0.99}, 1.0), 1);
  EXPECT_EQ(within_factor({0.9, 0.7, 0.75, 0.8}, 1.0), 4);
}

TEST(BoEScore, LargestTakesTheLowestOfEquals) {
  const std::vector<double> v{1, 5, 5, 2, 5};
  EXPECT_EQ(largest(v.data(), 0, 5, 2), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(largest(v.data(), 2, 5, 2), (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(largest(v.data(), 0, 5, 9).size(), 5u);
}

TEST(BoEOptions, OutOfRangeIsRefused) {
  const auto with = [](auto change) {
    BoEOptions o;
    change(o);
    return o;
  };
  for (const BoEOptions& o :
       {with([](auto& o) { o.rho = 0; }), with([](auto& o) { o.rho = 1.5; }),
        with([](auto& o) { o.alpha = {}; }), with([](auto& o) { o.alpha = {0.5, 1.1}; }),
        with([](auto& o) { o.alpha = {NAN}; }), with([](auto& o) { o.tau = -1; }),
        with([](auto& o) { o.gamma = -1; }), with([](auto& o) { o.halo = -1; }),
        with([](auto& o) { o.every = 0; }), with([](auto& o) { o.n_candidates = 0; }),
        with([](auto& o) { o.n_candidates = 2.5, o.per_quota = false; }),
        with([](auto& o) { o.anti_collapse = -1; }), with([](auto& o) { o.h_max = -1; }),
        with([](auto& o) { o.factor = -1; }), with([](auto& o) { o.spread = NAN; }),
        with([](auto& o) { o.spread_width = 0; }), with([](auto& o) { o.min_masked = -1; })}) {
    EXPECT_THROW(BoE{o}, InputError);
  }
}

}  // namespace
}  // namespace tabes
