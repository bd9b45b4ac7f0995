// Numbers and answers at their ends: what policies may return, logits that are no numbers where the
// device selects, keys of 64 bits, contexts after a pass that failed.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <numeric>
#include <set>

#include "decode_cases.h"
#include "model/transformer.h"
#include "ops/ops.h"
#include "random/philox.h"

namespace tabes {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

template <typename E>
std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const E& error) {
    return error.what();
  }
  return "no error of this type";
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Answers with what a test gives it, alike in both loops.
class Answers final : public Policy {
 public:
  Pace pace_ = Pace::quota;
  std::function<at::Tensor(const at::Tensor& confidence)> score = [](const at::Tensor& c) {
    return c;
  };
  std::function<at::Tensor(const at::Tensor& confidence)> influence = [](const at::Tensor&) {
    return at::Tensor();
  };
  std::optional<int64_t> count;
  std::vector<int64_t> probes;

  std::string name() const override { return "answers"; }
  Pace pace() const override { return pace_; }
  Decision decide(const StepContext& c) const override {
    Decision d(score(c.predictions.confidence.to(at::kDouble)));
    d.influence = influence(c.predictions.confidence.to(at::kDouble));
    if (count) d.count.assign(c.place.size(), *count);
    d.probes = probes;
    return d;
  }
  bool on_device(const Denoiser&) const override { return true; }
  DeviceDecision decide_on_device(const DeviceStep& s) const override {
    DeviceDecision d(score(s.predictions.confidence));
    d.influence = influence(s.predictions.confidence);
    if (count) d.count = at::full({s.batch.size()}, *count, at::kLong);
    return d;
  }
};

// What goes wrong with a policy in the host's loop and in the device's.
std::vector<std::string> refusals(const std::function<void(Answers&)>& change) {
  std::vector<std::string> found;
  for (const bool on_device : {false, true}) {
    const auto policy = std::make_shared<Answers>();
    change(*policy);
    GenerateOptions options;
    options.steps = 5;
    options.policy = policy;
    options.on_device = on_device;
    found.push_back(error_of<InputError>([&] { generate(*model(), sequences(), options); }));
  }
  return found;
}

// case R02
TEST(Answers, CountsAreFromOneToAllInBothLoops) {
  for (const int64_t count : {0, -3}) {
    for (const std::string& said : refusals([&](Answers& a) {
           a.pace_ = Pace::adaptive;
           a.count = count;
         })) {
      EXPECT_EQ(said, "policy answers reveals " + std::to_string(count) +
                          " rows of a sequence; 1 to 13 are possible");
    }
  }
  for (const std::string& said : refusals([](Answers& a) { a.pace_ = Pace::adaptive; })) {
    EXPECT_TRUE(has(said, "policy answers gave ") && has(said, "counts")) << said;
  }
}

// case R07
TEST(Answers, TensorsAreLookedAtBeforeTheyAreUsed) {
  using Change = std::function<at::Tensor(const at::Tensor&)>;
  const std::vector<std::pair<const char*, Change>> bad{
      {"undefined", [](const at::Tensor&) { return at::Tensor(); }},
      {"short", [](const at::Tensor& c) { return c.narrow(-1, 0, c.size(-1) - 1); }},
      {"scalar", [](const at::Tensor& c) { return c.sum(); }},
      {"complex", [](const at::Tensor& c) { return at::complex(c, c); }},
      {"sparse", [](const at::Tensor& c) { return c.to_sparse(); }},
      {"elsewhere", [](const at::Tensor& c) { return c.to(at::kMeta); }}};
  for (const auto& [name, change] : bad) {
    for (const std::string& said : refusals([&](Answers& a) { a.score = change; })) {
      EXPECT_EQ(said.find("policy answers gave scores as "), 0U) << name << ": " << said;
    }
    if (std::string(name) == "undefined") continue;  // of none, which may be
    for (const std::string& said : refusals([&](Answers& a) { a.influence = change; })) {
      EXPECT_EQ(said.find("policy answers gave influence as "), 0U) << name << ": " << said;
    }
  }
  for (const at::ScalarType type : {at::kInt, at::kBool, at::kHalf}) {
    for (const std::string& said : refusals(
             [&](Answers& a) { a.score = [type](const at::Tensor& c) { return c.to(type); }; })) {
      EXPECT_EQ(said, "no error of this type");
    }
  }
  for (const std::vector<int64_t>& probes : {std::vector<int64_t>{-1}, {44}, {5, 3}, {4, 4}}) {
    EXPECT_TRUE(has(refusals([&](Answers& a) { a.probes = probes; })[0], "as a probe"));
  }
}

// case R01
TEST(Answers, ANanScoreIsNamedInBothLoops) {
  for (const bool on_device : {false, true}) {
    const auto policy = std::make_shared<Answers>();
    policy->score = [](const at::Tensor& c) {
      at::Tensor s = c.clone();
      s.view(-1)[2] = kNan;
      return s;
    };
    GenerateOptions options;
    options.policy = policy;
    options.on_device = on_device;
    EXPECT_EQ(error_of<NumericsError>([&] { generate(*model(), sequences(), options); }),
              "step 0, sequence 0, position 2: the policy's score is NaN");
  }
}

// Its logits are spoiled at rows whose features were marked: position 4 of every sequence that has
// at most so many masks.
class Spoiled final : public Transformer {
 public:
  using Transformer::Transformer;
  double value = kNan;
  int64_t masks = 1000;

  at::Tensor encode(const PackedBatch& batch, const RowSet& rows, const Poll& poll,
                    std::unique_ptr<Context>* kept) const override {
    return marked(batch, rows, Transformer::encode(batch, rows, poll, kept));
  }
  at::Tensor encode_active(const PackedBatch& batch, const RowSet& active, const RowSet& rows,
                           Context& context, const Poll& poll) const override {
    return marked(batch, rows, Transformer::encode_active(batch, active, rows, context, poll));
  }
  at::Tensor project(const at::Tensor& features) const override {
    return spoiled(features, Transformer::project(features), 0);
  }
  at::Tensor project_columns(const at::Tensor& features, int64_t from,
                             int64_t count) const override {
    return spoiled(features, Transformer::project_columns(features, from, count), from);
  }

 private:
  static constexpr float kMark = 1e4;

  at::Tensor marked(const PackedBatch& batch, const RowSet& rows, at::Tensor features) const {
    for (int64_t b = 0; b < batch.size(); ++b) {
      const int64_t from = batch.cu_seqlens[b];
      const at::Tensor own = batch.tokens.narrow(0, from, batch.cu_seqlens[b + 1] - from);
      if (own.eq(kMask).sum().item<int64_t>() > masks) continue;
      for (int64_t i = rows.cu_rows[b]; i < rows.cu_rows[b + 1]; ++i) {
        if (rows.rows[i].item<int64_t>() == from + 4) features[i][0] = kMark;
      }
    }
    return features;
  }
  at::Tensor spoiled(const at::Tensor& features, at::Tensor logits, int64_t from) const {
    const at::Tensor bad = features.select(1, 0).eq(kMark).nonzero().squeeze(1);
    if (from <= 7 && 7 < from + logits.size(1)) {
      logits.select(1, 7 - from).index_fill_(0, bad, value);
    }
    return logits;
  }
};

// case R01
TEST(BadLogits, AreNamedWhoeverSelectsAndHoweverThePassIsMade) {
  RandomWeights weights;
  Spoiled denoiser(small(), weights, at::kCPU, at::kFloat, false);
  int64_t decodes = 0;
  for (const double value : {kNan, kInfinity}) {
    denoiser.value = value;
    for (const int64_t masks : {1000, 11}) {
      denoiser.masks = masks;
      for (auto [name, options] : settings_of(known_and_adaptive())) {
        // Of the sequences, the first is the one that has more than 11 masks and position 4.
        const std::vector<at::Tensor> one{sequences()[0]};
        std::vector<std::string> said;
        for (const bool on_device : {false, true}) {
          options.on_device = on_device;
          said.push_back(error_of<NumericsError>([&] { generate(denoiser, one, options); }));
        }
        EXPECT_EQ(said[0], said[1]) << name;
        // Later it may be revealed before it goes bad.
        if (masks == 11 && said[0] == "no error of this type") continue;
        EXPECT_TRUE(has(said[0], ", sequence 0, position 4: the model's logits hold NaN"))
            << name << ": " << said[0];
        if (masks == 1000) {
          EXPECT_EQ(said[0].find("step 0,"), 0U) << said[0];
        }
        ++decodes;
      }
    }
  }
  EXPECT_GT(decodes, 250);
}

// case R01
TEST(MinusInfinity, InTheHeadsBiasForbidsItsTokens) {
  class Biased final : public WeightSource {
   public:
    explicit Biased(std::vector<int64_t> never) : never_(std::move(never)) {}
    void read(const std::string& name, at::Tensor destination) override {
      weights_.read(name, destination);
      if (name != "head.bias" && name != "head.out.bias") return;
      for (const int64_t token : never_) destination[token] = -kInfinity;
    }

   private:
    std::vector<int64_t> never_;
    RandomWeights weights_;
  };
  for (const Kind& kind : kinds()) {
    if (!kind.config.head_bias) continue;
    const auto built = [&](std::vector<int64_t> never) {
      at::manual_seed(5);
      Biased weights(std::move(never));
      return make_transformer(kind.config, weights, at::kCPU, at::kFloat, false);
    };
    const std::vector<int64_t> never{1, 4, 5, 20};
    const auto plain = built({}), biased = built(never);
    for (auto [name, options] : settings_of(known_and_adaptive())) {
      options.forbidden = never;
      const GenerateResult wanted = generate(*plain, sequences(), options);
      for (const bool on_device : {false, true}) {
        options.on_device = on_device;
        SCOPED_TRACE(kind.name + ": " + name);
        expect_same_steps(generate(*biased, sequences(), options), wanted);
        options.forbidden = {};
        expect_same_steps(generate(*biased, sequences(), options), wanted);
      }
    }
    std::vector<int64_t> all(kind.config.vocab_size);
    std::iota(all.begin(), all.end(), int64_t{0});
    EXPECT_EQ(error_of<NumericsError>([&] {
                generate(*built(all), sequences());
              }).find("step 0, sequence 0, position 0: "),
              0U);
  }
}

// case F08
TEST(Draws, KeyBySixtyFourBits) {
  std::set<double> seen;
  size_t draws = 0;
  const auto add = [&](uint64_t seed, Stream stream, int64_t sequence) {
    seen.insert(counter_uniform(seed, stream, sequence, 3, 5));
    ++draws;
  };
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t one = uint64_t{1} << bit;
    add(1 ^ one, Stream::token, 7);  // seeds
    for (const Stream stream : {Stream::token, Stream::order, Stream::path}) {
      add(1, stream, static_cast<int64_t>(uint64_t{7} ^ one));
    }
  }
  EXPECT_EQ(seen.size(), draws);
  // Numbers of 32 bits draw as they always have: Philox of (position, step) and (stream, sequence).
  const PhiloxBlock b = philox(11, uint64_t{9} << 32 | 4, uint64_t{2} << 32 | 0xfffffffe);
  const uint64_t bits = (uint64_t{b.v[0]} << 32 | b.v[1]) >> 12;
  EXPECT_EQ(counter_uniform(11, Stream::probe, 0xfffffffe, 9, 4),
            (static_cast<double>(bits) + 0.5) * 0x1.0p-52);
}

// case F08
TEST(Draws, AreThoseOfTheSequencesNumber) {
  GenerateOptions options;
  options.temperature = 2.0;
  options.steps = 6;
  const std::vector<at::Tensor> one{sequences()[2]};
  for (const char* policy : {"confidence", "random", "remdm_cap", "info_gain", "lookum"}) {
    options.policy = make_policy(policy);
    std::set<std::vector<int64_t>> texts;
    for (const int64_t id : {int64_t{7}, 7 + (int64_t{1} << 32), 7 + (int64_t{1} << 62)}) {
      options.sequence_ids = {id};
      const at::Tensor t = generate(*model(), one, options).tokens[0];
      texts.insert({t.const_data_ptr<int64_t>(), t.const_data_ptr<int64_t>() + t.numel()});
    }
    EXPECT_EQ(texts.size(), 3U) << policy;
  }
  options.sequence_ids = {-1};
  EXPECT_TRUE(has(error_of<InputError>([&] { generate(*model(), one, options); }),
                  "number sequences from 0"));
}

at::Tensor counted(const std::vector<int64_t>& values) {
  return at::tensor(values, at::kLong);
}

// case F17
TEST(Temperatures, AreRightAtTheirEnds) {
  constexpr int64_t kRows = 4000;
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const at::Tensor row = at::tensor({1.0, 3.0, -kInfinity, -2.0, 2.0}, at::kDouble).to(type);
    const at::Tensor logits = row.expand({kRows, 5}).contiguous();
    const at::Tensor u =
        (at::arange(kRows, at::kDouble) + 0.5).div(kRows);  // every part of the distribution
    const auto counts = [&](double t, int64_t top_k = 0, double top_p = 1) {
      return at::bincount(ops::sample_rows(logits, u, t, top_k, top_p), {}, 5);
    };
    const at::Tensor uniform = counted({1000, 1000, 0, 1000, 1000});
    const at::Tensor certain = counted({0, kRows, 0, 0, 0});
    for (const double t : {1e30, 1e45, 1e46, 1e300, std::numeric_limits<double>::max()}) {
      EXPECT_TRUE((counts(t) - uniform).abs().max().item<int64_t>() <= 1) << type << t << counts(t);
      EXPECT_EQ(counts(t, 2).gt(0).sum().item<int64_t>(), 2) << type << t;
    }
    for (const double t : {1e-30, 1e-46, 1e-300, std::numeric_limits<double>::min(),
                           std::numeric_limits<double>::denorm_min()}) {
      EXPECT_TRUE(at::equal(counts(t), certain)) << type << t << counts(t);
      EXPECT_TRUE(at::equal(counts(t, 3, 0.9), certain)) << type << t;
    }
  }
}

}  // namespace
}  // namespace tabes
