// Contexts after passes that were stopped or ran out of memory, and memory that stays bounded.
#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <limits>
#include <numeric>

#include "batch/rows.h"
#include "decode_cases.h"
#include "model/transformer.h"

namespace tabes {
namespace {

struct Stop {};

// Throws at its n-th call from now on, if n is above 0.
struct StopAt {
  int64_t left = 0;
  int64_t calls = 0;
  Poll poll() {
    return [this] {
      ++calls;
      if (--left == 0) throw Stop{};
    };
  }
};

// Allocations on the CPU while it lives: the n-th fails, and all later ones if `for_good`.
class Failing final : public c10::Allocator {
 public:
  explicit Failing(int64_t n, bool for_good) : left_(n), for_good_(for_good) {
    c10::SetAllocator(at::kCPU, this, kPriority);
  }
  ~Failing() override { c10::SetAllocator(at::kCPU, plain_, kPriority); }

  c10::DataPtr allocate(size_t bytes) override {
    const int64_t left = --left_;
    if (left == 0 || (for_good_ && left < 0)) throw std::bad_alloc();
    return plain_->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return plain_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    plain_->copy_data(to, from, bytes);
  }
  bool reached() const { return left_ <= 0; }

 private:
  static constexpr uint8_t kPriority = 100;
  c10::Allocator* const plain_ = c10::GetAllocator(at::kCPU);
  std::atomic<int64_t> left_;
  bool for_good_;
};

// A batch of two sequences with its context, and a question about it.
struct Asked {
  explicit Asked(const TransformerConfig& config)
      : denoiser(config, weights, at::kCPU, at::kFloat, false) {
    for (size_t b = 0; b < 2; ++b) {
      const at::Tensor t = sequences()[b];
      tokens.emplace_back(t.const_data_ptr<int64_t>(), t.const_data_ptr<int64_t>() + t.numel());
    }
    batch = pack({&tokens[0], &tokens[1]}, at::kCPU);
    candidates = row_set({2, 5, 14}, {0, 2, 3}, at::kCPU);
    active = row_set({1, 2, 4, 5, 9, 13, 14, 16}, {0, 5, 8}, at::kCPU);
    offset = at::randn({3, config.hidden_size});
    denoiser.encode(batch, all_rows(batch), {}, &context);
  }

  at::Tensor gradient(const Poll& poll, bool frozen) const {
    return denoiser
        .entropy_gradient({.batch = batch,
                           .active = active,
                           .candidates = candidates,
                           .probes = active,
                           .offset = offset,
                           .weight = {},
                           .forbidden = to_tensor({kMask}),
                           .frozen = frozen ? context.get() : nullptr,
                           .poll = poll})
        .gradient;
  }
  at::Tensor again(const Poll& poll = {}) const {
    return denoiser.encode_active(batch, active, active, *context, poll);
  }

  RandomWeights weights;
  const Transformer denoiser;
  std::vector<HostTokens> tokens;
  PackedBatch batch;
  RowSet candidates, active;
  at::Tensor offset;
  std::unique_ptr<Context> context;
};

std::vector<TransformerConfig> configs() {
  std::vector<TransformerConfig> all;
  for (Kind& kind : kinds()) {
    kind.config.max_length = 32;
    all.push_back(kind.config);
  }
  return all;
}

// case R06
TEST(Contexts, AreAsTheyWereAfterAGradientThatWasStopped) {
  for (const TransformerConfig& config : configs()) {
    const Asked asked(config);
    StopAt counter;
    const at::Tensor wanted = asked.gradient(counter.poll(), true);
    ASSERT_GT(counter.calls, 2 * config.num_layers);
    for (int64_t n = 1; n <= counter.calls; ++n) {
      StopAt stop{n};
      EXPECT_THROW(asked.gradient(stop.poll(), true), Stop);
      EXPECT_TRUE(at::equal(asked.gradient({}, true), wanted)) << "stopped at poll " << n;
      StopAt exact{n};
      EXPECT_THROW(asked.gradient(exact.poll(), false), Stop);
    }
  }
}

// case R06
TEST(Contexts, AreAsTheyWereWhereverMemoryRanOut) {
  for (const bool for_good : {false, true}) {
    const Asked asked(small());
    const at::Tensor wanted = asked.gradient({}, true);
    int64_t n = 1;
    for (bool reached = true; reached; ++n) {
      try {
        Failing failing(n, for_good);
        const at::Tensor got = asked.gradient({}, true);
        reached = failing.reached();
        if (reached) continue;  // somebody did without
      } catch (const std::exception&) {
      }
      ASSERT_TRUE(at::equal(asked.gradient({}, true), wanted)) << "failed at allocation " << n;
    }
    EXPECT_GT(n, 50);
  }
}

// case R06
TEST(Contexts, OfFrozenPassesThatFailedAreRefused) {
  StopAt counter;
  Asked(small()).again(counter.poll());
  for (int64_t n = 1; n <= counter.calls; ++n) {
    Asked asked(small());
    StopAt stop{n};
    EXPECT_THROW(asked.again(stop.poll()), Stop);
    EXPECT_THROW(asked.again(), InputError);
    EXPECT_THROW(asked.gradient({}, true), InputError);
    asked.denoiser.encode(asked.batch, all_rows(asked.batch), {}, &asked.context);
    EXPECT_NO_THROW(asked.again());
  }
}

// case R06
TEST(Contexts, OfAnotherModelOrBatchAreRefused) {
  TransformerConfig other = small();
  other.num_layers = 2;
  Asked asked(small()), foreign(other);
  EXPECT_THROW(
      asked.denoiser.encode_active(asked.batch, asked.active, asked.active, *foreign.context, {}),
      InputError);
  asked.context->select(to_tensor({0, 1, 2}));
  EXPECT_THROW(asked.again(), InputError);
  struct Alien final : Context {
    void select(const at::Tensor&) override {}
  } alien;
  EXPECT_THROW(asked.denoiser.encode_active(asked.batch, asked.active, asked.active, alien, {}),
               InputError);
}

// case R06
TEST(Contexts, ADecodeThatWasStoppedLeavesTheModelAsItWas) {
  const auto denoiser = model();
  GenerateOptions options;
  options.steps = 4;
  options.policy = boe(without_factor());
  options.refresh_every = 2;
  for (const bool on_device : {false, true}) {
    options.on_device = on_device;
    options.poll = {};
    StopAt counter;
    options.poll = counter.poll();
    const GenerateResult wanted = generate(*denoiser, sequences(), options);
    for (int64_t n = 1; n <= counter.calls; n += 7) {
      StopAt stop{n};
      options.poll = stop.poll();
      EXPECT_THROW(generate(*denoiser, sequences(), options), Stop);
    }
    options.poll = {};
    expect_same_steps(generate(*denoiser, sequences(), options), wanted);
  }
}

// case R07
TEST(Errors, OfPyTorchDoNotComeOutAsTheyAre) {
  // A model that fails in its own ways.
  class Odd final : public Denoiser {
   public:
    std::function<at::Tensor()> fails;
    ModelInfo info_ = make();
    static ModelInfo make() {
      ModelInfo i;
      i.vocab_size = 8;
      i.hidden_size = 1;
      i.max_length = int64_t{1} << 60;
      i.mask_token_id = 0;
      return i;
    }
    const ModelInfo& info() const override { return info_; }
    at::Tensor embedding_table() const override { return at::zeros({8, 1}); }
    at::Tensor encode(const PackedBatch&, const RowSet&, const Poll&,
                      std::unique_ptr<Context>*) const override {
      return fails();
    }
    at::Tensor project(const at::Tensor& f) const override { return f.clone(); }
  } odd;
  const std::vector<at::Tensor> one{at::zeros({3}, at::kLong)};
  const std::vector<std::function<at::Tensor()>> failures{
      [] { return at::mm(at::ones({2, 3}), at::ones({2, 3})); },
      [] { return at::empty({1}, at::kMeta).item(), at::Tensor(); },
      [] { return at::ones({3}).index_select(0, at::full({1}, 7, at::kLong)); },
      [] { return at::zeros({3, 5}); },  // of another vocabulary: no token 7 to forbid
      [] { return at::empty({int64_t{1} << 50}); },
      [] { return at::empty({int64_t{1} << 62, int64_t{1} << 62}); }};
  for (size_t i = 0; i < failures.size(); ++i) {
    odd.fails = failures[i];
    GenerateOptions options;
    options.forbidden = {7};
    EXPECT_THROW(generate(odd, one, options), Error) << i;
    if (i != 3) {
      EXPECT_THROW(logits(odd, one), Error) << i;
    }
    EXPECT_THROW(one_step_fall(odd, one, {{0}}, {{1}}, {7}), Error) << i;
    EXPECT_THROW(influence(odd, one, {{0}}, {{1}}), Error) << i;
  }
  EXPECT_THROW(with_masks(odd, one[0], int64_t{1} << 50), DeviceError);
  for (const at::Tensor& t : {one[0].to(at::kMeta), one[0].to_sparse(), at::Tensor()}) {
    EXPECT_THROW(generate(odd, {t}, {}), InputError);
    EXPECT_THROW(logits(odd, {t}), InputError);
    EXPECT_THROW(influence(odd, {t}, {{0}}, {{1}}), InputError);
  }
}

// The largest tensor that a scope asks for, in bytes.
class Largest final : public c10::Allocator {
 public:
  Largest() { c10::SetAllocator(at::kCPU, this, kPriority); }
  ~Largest() override { c10::SetAllocator(at::kCPU, plain_, kPriority); }
  c10::DataPtr allocate(size_t bytes) override {
    size_t before = most;
    while (before < bytes && !most.compare_exchange_weak(before, bytes)) continue;
    return plain_->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return plain_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    plain_->copy_data(to, from, bytes);
  }
  std::atomic<size_t> most = 0;

 private:
  static constexpr uint8_t kPriority = 100;
  c10::Allocator* const plain_ = c10::GetAllocator(at::kCPU);
};

// case R09
TEST(Memory, LogitsExistForSomeRowsAtATime) {
  RandomWeights weights;
  TransformerConfig config = small();
  config.vocab_size = 400'000;
  config.hidden_size = config.mlp_size = 8;
  config.num_heads = config.num_kv_heads = 2;
  config.num_layers = 1;
  config.max_length = 300;
  const Transformer denoiser(config, weights, at::kCPU, at::kFloat, /*prepack=*/false);
  const std::vector<at::Tensor> one{at::full({260}, kMask, at::kLong)};
  // 260 rows of logits take 397 MiB, a piece of them 244.
  constexpr size_t kPieceBytes = size_t{256} << 20;
  GenerateOptions options;
  options.steps = 2;
  options.policy = make_policy("klass", {{"tau", 0.0}, {"epsilon", 1e-30}});
  {
    const Largest largest;
    generate(denoiser, one, options);
    EXPECT_LE(largest.most, kPieceBytes);
    EXPECT_GT(largest.most, kPieceBytes / 8);
  }
  std::vector<int64_t> candidates{0}, probes(259);
  std::iota(probes.begin(), probes.end(), int64_t{1});
  const Largest largest;
  one_step_fall(denoiser, one, {candidates}, {probes});
  EXPECT_LE(largest.most, kPieceBytes);
  EXPECT_GT(largest.most, kPieceBytes / 8);
}

// case R09
TEST(Memory, FallsAreTheSameInPieces) {
  RandomWeights weights;
  TransformerConfig config = small();
  config.hidden_size = config.mlp_size = 8;
  config.num_heads = config.num_kv_heads = 2;
  config.num_layers = 1;
  config.max_length = 1000;
  const Transformer denoiser(config, weights, at::kCPU, at::kDouble, /*prepack=*/false);
  const std::vector<at::Tensor> one{at::full({1000}, kMask, at::kLong)};
  std::vector<int64_t> candidates(20);  // eight copies of the sequence go through at a time
  std::iota(candidates.begin(), candidates.end(), int64_t{30});
  const OneStepFall all = one_step_fall(denoiser, one, {candidates}, {{0, 900}});
  EXPECT_EQ(all.cost.forward_rows, 1000 + 21 * 1000);
  for (const int64_t i : {0, 6, 7, 8, 15, 19}) {
    const OneStepFall own = one_step_fall(denoiser, one, {{candidates[i]}}, {{0, 900}});
    EXPECT_NEAR(own.fall[0][0].item<double>(), all.fall[0][i].item<double>(), 1e-10) << i;
  }
}

}  // namespace
}  // namespace tabes
