// Statistics of logits that exist for some tokens at a time.
#include "decode/column_statistics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "batch/pieces.h"
#include "batch/rows.h"
#include "decode/predict.h"
#include "model/transformer.h"
#include "random_models.h"

namespace tabes {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A model whose features are its logits.
class Table : public Denoiser {
 public:
  explicit Table(int64_t vocab) { info_.vocab_size = vocab; }
  const ModelInfo& info() const override { return info_; }
  at::Tensor embedding_table() const override { return {}; }
  at::Tensor encode(const PackedBatch&, const RowSet&, const Poll&,
                    std::unique_ptr<Context>*) const override {
    return {};
  }
  at::Tensor project(const at::Tensor& features) const override { return features.clone(); }

 private:
  ModelInfo info_;
};

void expect_close(const at::Tensor& got, const at::Tensor& wanted, double limit) {
  EXPECT_TRUE(at::allclose(got, wanted, limit, limit, /*equal_nan=*/true)) << got << wanted;
}

void expect_same(const ops::RowStatistics& got, const ops::RowStatistics& wanted, double limit) {
  EXPECT_TRUE(at::equal(got.argmax, wanted.argmax));
  expect_close(got.lse, wanted.lse, limit);
  expect_close(got.entropy, wanted.entropy, limit);
  expect_close(got.max_prob, wanted.max_prob, limit);
  expect_close(got.margin, wanted.margin, limit);
}

TEST(ColumnStatistics, AreThoseOfWholeRows) {
  at::manual_seed(1);
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const at::Tensor logits = (at::randn({40, 23}, at::kDouble) * 3).to(type);
    logits[1].fill_(0.5);                          // all tie
    logits[2].narrow(0, 4, 19).fill_(-60);         // nearly certain
    logits[3].narrow(0, 0, 22).fill_(-kInfinity);  // certain
    logits[4][13] = logits[4][6] = 50;             // two tie
    logits[5] *= 30;
    // Forbidden are whole parts, the first among them, and single tokens.
    const at::Tensor forbidden = to_tensor({0, 1, 2, 3, 4, 9, 10, 11, 12, 13, 20});
    at::Tensor open = logits.clone();
    open.index_fill_(1, forbidden, -kInfinity);
    const ops::RowStatistics wanted = ops::row_statistics(open.to(at::kDouble));
    for (const int64_t columns : {1, 4, 5, 22, 23, 100}) {
      SCOPED_TRACE(columns);
      const ops::RowStatistics got = statistics_by_columns(Table(23), logits, forbidden, columns);
      const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
      expect_same(
          {wide(got.lse), wide(got.entropy), wide(got.max_prob), wide(got.margin), got.argmax},
          wanted, type == at::kDouble ? 1e-12 : 3e-6);
    }
  }
}

// case R01
TEST(ColumnStatistics, OfWhatIsNoDistributionAreNaN) {
  const at::Tensor logits = at::zeros({6, 8}, at::kDouble);
  logits[0][6] = std::numeric_limits<double>::quiet_NaN();
  logits[1].narrow(0, 1, 7).fill_(-kInfinity);  // nothing but the forbidden token
  logits[3][2] = kInfinity;
  logits[4][0] = std::numeric_limits<double>::quiet_NaN();  // of the forbidden token
  logits[5][0] = kInfinity;
  const ops::RowStatistics got = statistics_by_columns(Table(8), logits, to_tensor({0}), 3);
  for (const at::Tensor& t : {got.entropy, got.max_prob, got.margin}) {
    EXPECT_TRUE(t[0].isnan().item<bool>());
    EXPECT_TRUE(t[1].isnan().item<bool>());
    EXPECT_TRUE(t[2].isfinite().item<bool>());
    EXPECT_TRUE(t[3].isnan().item<bool>());
    EXPECT_TRUE(t[4].isnan().item<bool>());
    EXPECT_TRUE(t[5].isnan().item<bool>());
  }
}

// Counts how its head is asked.
class Counted : public Transformer {
 public:
  using Transformer::Transformer;
  mutable int64_t whole = 0, parts = 0;
  at::Tensor project(const at::Tensor& features) const override {
    ++whole;
    return Transformer::project(features);
  }
  at::Tensor project_columns(const at::Tensor& features, int64_t from,
                             int64_t count) const override {
    ++parts;
    return Transformer::project_columns(features, from, count);
  }
};

TEST(ColumnStatistics, AreTakenWhereWholeRowsWouldTakeSeveralPieces) {
  at::manual_seed(4);
  RandomWeights weights;
  TransformerConfig config = small();
  config.vocab_size = 300'000;
  config.hidden_size = config.mlp_size = 8;
  config.num_heads = config.num_kv_heads = 2;
  config.num_layers = 1;
  config.max_length = 300;
  config.head_bias = true;
  const Counted model(config, weights, at::kCPU, at::kFloat, /*prepack=*/false);
  const HostTokens tokens(260, config.mask_token_id);
  const PackedBatch batch = pack({&tokens}, at::kCPU);
  const RowSet rows = all_rows(batch);
  ASSERT_GT(rows.count(), logits_at_once(config.vocab_size, sizeof(float)));
  GenerateOptions options;
  PredictRequest request{
      .batch = batch, .rows = rows, .forbidden = to_tensor({3, 7}), .options = options};
  const Predictions parts = predict(model, request).predictions;
  EXPECT_EQ(model.whole, 0);
  EXPECT_EQ(model.parts, 2);
  at::Tensor logits = model.project(model.encode(batch, rows, {}, nullptr));
  logits.index_fill_(1, request.forbidden, -kInfinity);
  const ops::RowStatistics s = ops::row_statistics(logits);
  EXPECT_TRUE(at::equal(parts.token, s.argmax));
  expect_close(parts.confidence, s.max_prob, 1e-5);
  expect_close(parts.margin, s.margin, 1e-5);
  expect_close(parts.entropy, s.entropy, 1e-5);
  // Tokens are drawn from whole rows.
  model.whole = model.parts = 0;
  options.temperature = 1;
  request.uniforms = at::full({260}, 0.5, at::kDouble);
  predict(model, request);
  EXPECT_EQ(model.whole, 3);
  EXPECT_EQ(model.parts, 0);
}

}  // namespace
}  // namespace tabes
