// The loop over a model whose predictions are known in advance.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "decode/schedule.h"
#include "tabes/tabes.h"

namespace tabes {
namespace {

constexpr int64_t kMask = 0, kEos = 1, kVocab = 8;

// Every row predicts token 2 + position % 6 with a confidence that grows with its position, so
// that the order of every policy is known. Shared by all sequences and states.
class Ruler final : public Denoiser {
 public:
  explicit Ruler(double poison = 0.0) : poison_(poison) {
    info_.family = "ruler";
    info_.vocab_size = kVocab;
    info_.hidden_size = 1;
    info_.num_layers = 1;
    info_.max_length = 64;
    info_.mask_token_id = kMask;
    info_.eos_token_ids = {kEos};
  }
  const ModelInfo& info() const override { return info_; }
  at::Tensor embedding_table() const override { return at::zeros({kVocab, 1}); }
  at::Tensor encode(const PackedBatch& batch, const RowSet& rows, const Poll&,
                    std::unique_ptr<Context>*) const override {
    at::Tensor logits = at::zeros({rows.count(), kVocab});
    for (size_t b = 0; b + 1 < rows.cu_rows.size(); ++b) {
      for (int64_t i = rows.cu_rows[b]; i < rows.cu_rows[b + 1]; ++i) {
        const int64_t position = rows.rows[i].item<int64_t>() - batch.cu_seqlens[b];
        logits[i][2 + position % 6] = 1.0 + 0.1 * static_cast<double>(position) + poison_;
      }
    }
    return logits;
  }
  at::Tensor project(const at::Tensor& features) const override { return features.clone(); }

 private:
  ModelInfo info_;
  double poison_;
};

at::Tensor masks(int64_t n) {
  return at::full({n}, kMask, at::kLong);
}

std::vector<int64_t> revealed(const StepRecord& r) {
  return {r.position.const_data_ptr<int64_t>(),
          r.position.const_data_ptr<int64_t>() + r.position.numel()};
}

TEST(Schedule, DividesMasksAsLLaDADoes) {
  Schedule s(HostTokens(10, kMask), kMask, 4, std::nullopt, 0);
  std::vector<int64_t> quotas;
  while (!s.done()) {
    quotas.push_back(s.quota());
    s.advance(s.quota());
  }
  EXPECT_EQ(quotas, (std::vector<int64_t>{3, 3, 2, 2}));
}

TEST(Schedule, AdaptivePacesEndWithTheMasksAndTimedOnesWithTheSteps) {
  const HostTokens tokens(6, kMask);
  // Three blocks in one step: no error. A step a block, or at worst one a mask.
  EXPECT_EQ(Schedule(tokens, kMask, 1, 2, 0, Pace::adaptive).total_steps(), 3);
  Schedule adaptive(tokens, kMask, 1, 2, 0, Pace::adaptive, /*keeps_quota=*/false);
  EXPECT_EQ(adaptive.total_steps(), 6);
  adaptive.advance(1);
  EXPECT_EQ(adaptive.end(), 2);
  adaptive.advance(1);
  EXPECT_EQ(adaptive.end(), 4);
  adaptive.advance(2);
  adaptive.advance(2);
  EXPECT_TRUE(adaptive.done());

  Schedule timed(tokens, kMask, 4, 3, 0, Pace::timed);
  EXPECT_EQ(timed.total_steps(), 4);
  EXPECT_FALSE(timed.last_of_block());
  timed.advance(3);  // all masks of the block, but its second step is still to come
  EXPECT_EQ(timed.end(), 3);
  EXPECT_TRUE(timed.last_of_block());
  timed.advance(0);
  EXPECT_EQ(timed.end(), 6);
  timed.advance(2, 0);
  timed.advance(2, 1);
  EXPECT_TRUE(timed.done());
  EXPECT_THROW(Schedule(tokens, kMask, 1, 2, 0, Pace::timed), InputError);
}

TEST(Schedule, GivesEachBlockItsShareAndSkipsFullOnes) {
  HostTokens tokens(12, kMask);
  for (int i = 4; i < 8; ++i) tokens[i] = 5;  // the middle block is given
  Schedule s(tokens, kMask, 5, 4, 0);
  EXPECT_EQ(s.total_steps(), 5);
  EXPECT_EQ(s.end(), 4);
  std::vector<int64_t> quotas;
  while (!s.done()) {
    quotas.push_back(s.quota());
    s.advance(s.quota());
  }
  EXPECT_EQ(quotas, (std::vector<int64_t>{2, 1, 1, 2, 2}));
}

TEST(Generate, ConfidenceRevealsTheSurestFirst) {
  GenerateOptions options;
  options.steps = 2;
  const GenerateResult r = generate(Ruler(), {masks(4)}, options);
  ASSERT_EQ(r.trace.size(), 2u);
  EXPECT_EQ(revealed(r.trace[0]), (std::vector<int64_t>{2, 3}));
  EXPECT_TRUE(at::equal(r.tokens[0], at::tensor({2, 3, 4, 5}, at::kLong)));
  EXPECT_EQ(r.cost.forward_rows, 8);
  EXPECT_EQ(r.cost.head_rows, 4 + 2);
  EXPECT_DOUBLE_EQ(r.forward_equivalents, 2.0);
}

TEST(Generate, ModelsWithoutContextTakeFullPasses) {
  GenerateOptions options;
  options.steps = 3;
  options.refresh_every = 2;
  EXPECT_EQ(generate(Ruler(), {masks(6)}, options).cost.forward_rows, 18);
}

TEST(Generate, GuessesAreForWhoWatches) {
  GenerateOptions options;
  options.steps = 3;
  EXPECT_TRUE(generate(Ruler(), {masks(6)}, options).trace[0].guesses.empty());
  std::vector<at::Tensor> seen;
  options.callback = [&](const StepRecord& r, const std::vector<at::Tensor>&) {
    seen.push_back(r.guesses.at(0));
    return true;
  };
  generate(Ruler(), {masks(6)}, options);
  // Confidence grows with the position, so the first step reveals 4 and 5.
  EXPECT_TRUE(at::equal(seen[0], at::tensor({2, 3, 4, 5, -1, -1}, at::kLong)));
  EXPECT_TRUE(at::equal(seen[2], at::full({6}, -1, at::kLong)));
}

TEST(Generate, TiesGoToTheLowestPosition) {
  class Flat final : public Policy {
   public:
    std::string name() const override { return "flat"; }
    Decision decide(const StepContext& c) const override { return at::zeros({c.eligible.count()}); }
  };
  GenerateOptions options;
  options.steps = 3;
  options.policy = std::make_shared<Flat>();
  const GenerateResult r = generate(Ruler(), {masks(6)}, options);
  EXPECT_EQ(revealed(r.trace[0]), (std::vector<int64_t>{0, 1}));
}

TEST(Generate, GivenTokensNeverChangeAndSequencesMayDiffer) {
  at::Tensor first = masks(5);
  first[0] = 7;
  first[3] = 6;
  const GenerateResult r = generate(Ruler(), {first, masks(2), at::tensor({4}, at::kLong)});
  EXPECT_TRUE(at::equal(r.tokens[0], at::tensor({7, 3, 4, 6, 6}, at::kLong)));
  EXPECT_TRUE(at::equal(r.tokens[1], at::tensor({2, 3}, at::kLong)));
  EXPECT_TRUE(at::equal(r.tokens[2], at::tensor({4}, at::kLong)));
  // Finished sequences leave the batch: 3 + 2 masks at one a step.
  EXPECT_EQ(r.trace[2].cost.forward_rows, 5);
}

TEST(Generate, ASequenceDrawsTheSameAloneAndInABatch) {
  GenerateOptions options;
  options.temperature = 2.0;
  options.seed = 5;
  options.policy = make_policy("random");
  const GenerateResult together = generate(Ruler(), {masks(7), masks(30), masks(9)}, options);
  options.sequence_ids = {1};
  const GenerateResult alone = generate(Ruler(), {masks(30)}, options);
  EXPECT_TRUE(at::equal(together.tokens[1], alone.tokens[0]));
  options.seed = 6;
  EXPECT_FALSE(at::equal(generate(Ruler(), {masks(30)}, options).tokens[0], alone.tokens[0]));
}

TEST(Generate, EndOfTextCanBeForbiddenOrLeftToTheEnd) {
  class LovesEos final : public Policy {
   public:
    std::string name() const override { return "loves_eos"; }
    Decision decide(const StepContext& c) const override {
      return c.predictions.token.eq(kEos).to(at::kDouble);
    }
  };
  GenerateOptions options;
  options.temperature = 50.0;  // nearly uniform, so that end tokens are drawn
  options.steps = 40;
  options.policy = std::make_shared<LovesEos>();
  const auto count_eos = [](const at::Tensor& t) { return t.eq(kEos).sum().item<int64_t>(); };
  const GenerateResult plain = generate(Ruler(), {masks(40)}, options);
  ASSERT_GT(count_eos(plain.tokens[0]), 0);
  EXPECT_EQ(plain.trace[0].token.item<int64_t>(), kEos);
  options.confidence_eos_eot_inf = true;
  EXPECT_NE(generate(Ruler(), {masks(40)}, options).trace[0].token.item<int64_t>(), kEos);
  options.logits_eos_inf = true;
  EXPECT_EQ(count_eos(generate(Ruler(), {masks(40)}, options).tokens[0]), 0);
}

TEST(Generate, TheCallbackWatchesAndStops) {
  GenerateOptions options;
  options.steps = 4;
  int calls = 0;
  options.callback = [&](const StepRecord& r, const std::vector<at::Tensor>& tokens) {
    EXPECT_EQ(r.step, calls);
    EXPECT_EQ(tokens[0].eq(kMask).sum().item<int64_t>(), 8 - 2 * (calls + 1));
    return ++calls < 2;
  };
  const GenerateResult r = generate(Ruler(), {masks(8)}, options);
  EXPECT_EQ(calls, 2);
  EXPECT_FALSE(r.finished);
}

TEST(Generate, ThePollStopsAtOnce) {
  GenerateOptions options;
  struct Stop {};  // none of the library's
  options.poll = [] { throw Stop{}; };
  EXPECT_THROW(generate(Ruler(), {masks(4)}, options), Stop);
}

void expect_input_error(const std::vector<at::Tensor>& sequences, const GenerateOptions& options,
                        const std::string& fragment) {
  try {
    generate(Ruler(), sequences, options);
    FAIL() << "no error; expected '" << fragment << "'";
  } catch (const InputError& e) {
    EXPECT_NE(std::string(e.what()).find(fragment), std::string::npos) << e.what();
  }
}

TEST(Generate, BadArgumentsAreInputErrors) {
  const auto with = [](auto set) {
    GenerateOptions o;
    set(o);
    return o;
  };
  using O = GenerateOptions&;
  static constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  const std::vector<at::Tensor> good{masks(4)};
  expect_input_error(good, with([](O o) { o.steps = 0; }), "steps");
  expect_input_error(good, with([](O o) { o.steps = -1; }), "steps");
  expect_input_error(good, with([](O o) { o.block_length = 0; }), "block_length");
  expect_input_error(good, with([](O o) { o.temperature = -1; }), "temperature");
  expect_input_error(good, with([](O o) { o.temperature = std::nan(""); }), "temperature");
  expect_input_error(good, with([](O o) { o.top_p = 0; }), "top_p");
  expect_input_error(good, with([](O o) { o.top_p = 1.5; }), "top_p");
  expect_input_error(good, with([](O o) { o.top_k = -1; }), "top_k");
  expect_input_error(good, with([](O o) { o.cfg_scale = -0.5; }), "cfg_scale");
  expect_input_error(good, with([](O o) { o.cfg_scale = 1e39; }), "cfg_scale");
  expect_input_error(good, with([](O o) { o.refresh_every = -1; }), "refresh_every");
  expect_input_error(good, with([](O o) { o.sequence_ids = {-1}; }), "sequence_ids[0] is -1");
  expect_input_error(good, with([](O o) { o.forbidden = {kVocab}; }), "forbidden token 8");
  expect_input_error(good, with([](O o) { o.forbidden = {1, 2, 3, 4, 5, 6, 7}; }), "every token");
  expect_input_error(good, with([](O o) { o.sequence_ids = {1, 2}; }), "sequence_ids");
  expect_input_error({masks(9)}, with([](O o) {
                       o.steps = 2;
                       o.block_length = 3;
                     }),
                     "3 blocks");
  expect_input_error({}, {}, "empty");
  expect_input_error({masks(0)}, {}, "empty");
  expect_input_error({masks(65)}, {}, "at most 64");
  expect_input_error({at::full({3}, kVocab, at::kLong)}, {}, "outside the vocabulary");
  expect_input_error({at::full({3}, -1, at::kLong)}, {}, "outside the vocabulary");
  expect_input_error({at::zeros({2, 2}, at::kLong)}, {}, "1-D");
  expect_input_error({at::zeros({2})}, {}, "integer");
  expect_input_error({at::full({3}, 5, at::kLong)}, {}, "nothing to fill");
  // The largest values an argument can have are no trouble where they make sense.
  EXPECT_TRUE(generate(Ruler(), good, with([](O o) {
                         o.steps = kHuge;
                         o.block_length = kHuge;
                         o.top_k = kHuge;
                         o.temperature = 1.0;
                       }))
                  .finished);
  EXPECT_THROW(make_policy("greedy"), InputError);
  EXPECT_THROW(with_masks(Ruler(), masks(3), kHuge), InputError);
}

TEST(Generate, NanIsNamed) {
  try {
    generate(Ruler(std::numeric_limits<double>::quiet_NaN()),
             {at::full({1}, 3, at::kLong), masks(2)});
    FAIL();
  } catch (const NumericsError& e) {
    EXPECT_NE(std::string(e.what()).find("step 0, sequence 1, position 0"), std::string::npos)
        << e.what();
  }
}

// Predicts the same at every position: logits `with` where a sequence begins with a given token,
// `without` where that is masked.
class TwoFaced final : public Denoiser {
 public:
  TwoFaced(std::vector<double> with, std::vector<double> without)
      : with_(at::tensor(with, at::kFloat)), without_(at::tensor(without, at::kFloat)) {
    info_.vocab_size = with_.size(0);
    info_.hidden_size = 1;
    info_.max_length = 64;
    info_.mask_token_id = kMask;
  }
  const ModelInfo& info() const override { return info_; }
  at::Tensor embedding_table() const override { return at::zeros({with_.size(0), 1}); }
  at::Tensor encode(const PackedBatch& batch, const RowSet& rows, const Poll&,
                    std::unique_ptr<Context>*) const override {
    at::Tensor logits = at::empty({rows.count(), with_.size(0)});
    for (size_t b = 0; b + 1 < rows.cu_rows.size(); ++b) {
      const bool given = batch.tokens[batch.cu_seqlens[b]].item<int64_t>() != kMask;
      for (int64_t i = rows.cu_rows[b]; i < rows.cu_rows[b + 1]; ++i) {
        logits[i] = given ? with_ : without_;
      }
    }
    return logits;
  }
  at::Tensor project(const at::Tensor& features) const override { return features.clone(); }

 private:
  ModelInfo info_;
  at::Tensor with_, without_;
};

// The token that guidance writes behind a given one, and its probability.
std::pair<int64_t, double> guided(double scale, std::vector<double> with,
                                  std::vector<double> without) {
  GenerateOptions options;
  options.cfg_scale = scale;
  const GenerateResult r =
      generate(TwoFaced(std::move(with), std::move(without)), {at::tensor({2, 0})}, options);
  EXPECT_DOUBLE_EQ(r.forward_equivalents, scale > 0 ? 2.0 : 1.0);
  return {r.tokens[0][1].item<int64_t>(), r.trace[0].confidence.item<double>()};
}

// case R11
TEST(Generate, GuidancePushesAwayFromTheUnguided) {
  // Logits that guidance turns around: c = (3, 2), u = (4, 1), so that u + (s + 1)(c - u) is
  // (3 - s, 2 + s) at tokens 1 and 2.
  const auto probability = [](double s, int64_t token) {
    const double difference = (3 - s) - (2 + s);
    return 1 / (1 + std::exp(token == 1 ? -difference : difference));
  };
  for (const double s : {0.0, 0.25, 0.75, 2.0}) {
    const auto [token, p] = guided(s, {0, 3, 2}, {0, 4, 1});
    EXPECT_EQ(token, s < 0.5 ? 1 : 2) << s;
    EXPECT_NEAR(p, probability(s, token), 1e-6) << s;
  }
}

// case F18, R01
TEST(Generate, TokensOfProbabilityZeroAreGuidedToo) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  // In both passes, and in the guided one alone: never written.
  EXPECT_EQ(guided(1.5, {0, 3, kNone}, {0, 4, kNone}), (std::pair<int64_t, double>{1, 1.0}));
  EXPECT_EQ(guided(1.5, {0, kNone, 3}, {0, 9, 0}), (std::pair<int64_t, double>{2, 1.0}));
  // In the unguided pass alone: infinitely likelier for being given, before all others.
  EXPECT_EQ(guided(0.5, {0, 9, -3}, {0, 0, kNone}), (std::pair<int64_t, double>{2, 1.0}));
  // Two such tokens share by the guided pass alone: p_c^(s + 1), here e^(2 * 1.5) to 1.
  const auto [token, p] = guided(1.0, {0, 9, 2.5, 1}, {0, 0, kNone, kNone});
  EXPECT_EQ(token, 2);
  EXPECT_NEAR(p, 1 / (1 + std::exp(-3.0)), 1e-6);
  // What is forbidden is not looked at: here the mask, token 0.
  EXPECT_EQ(guided(1.0, {5, 3, 2}, {kNone, 3, 2}).first, 1);
}

}  // namespace
}  // namespace tabes
