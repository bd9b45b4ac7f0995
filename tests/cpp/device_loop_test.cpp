// Decodes that select rows on the device: the same as the host's loop, and without the host.
#include "decode/device_loop.h"

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <ATen/WrapDimUtils.h>
#include <gtest/gtest.h>
#include <torch/library.h>

#include "batch/device_select.h"
#include "batch/select.h"
#include "decode/loop.h"
#include "model/transformer.h"
#include "random_models.h"
#include "tabes/tabes.h"

namespace tabes {
namespace {

constexpr int64_t kMask = 3;

std::vector<at::Tensor> sequences() {
  std::vector<at::Tensor> result{at::full({13}, kMask, at::kLong), at::full({5}, kMask, at::kLong),
                                 at::full({22}, kMask, at::kLong), at::full({4}, 7, at::kLong)};
  result[2].narrow(0, 0, 6).fill_(9);
  result[2][11] = 4;
  return result;
}

std::shared_ptr<const Denoiser> model() {
  at::manual_seed(5);
  RandomWeights weights;
  return make_transformer(small(), weights, at::kCPU, at::kFloat, false);
}

BoEOptions without_factor() {
  BoEOptions o;
  o.factor = 0;
  return o;
}

std::shared_ptr<const Policy> boe(BoEOptions o) {
  return std::make_shared<const BoE>(std::move(o));
}

struct Case {
  const char* name;
  std::shared_ptr<const Policy> policy;
};

// Policies whose counts the host knows.
std::vector<Case> known() {
  BoEOptions product = without_factor(), expected = without_factor(), sparse = without_factor();
  product.rule = ScoreRule::product;
  product.spread = 0;
  expected.draft = DraftKind::expected;
  expected.anti_collapse = 0.5;
  sparse.every = 2;
  sparse.prefilter = Prefilter::margin;
  sparse.min_masked = 4;
  return {{"confidence", make_policy("confidence")},
          {"margin", make_policy("margin")},
          {"entropy", make_policy("entropy")},
          {"random", make_policy("random")},
          {"pc_sampler", make_policy("pc_sampler")},
          {"spread", make_policy("spread", {{"factor", 0}})},
          {"boe", boe(without_factor())},
          {"boe product", boe(product)},
          {"boe expected", boe(expected)},
          {"boe sparse", boe(sparse)}};
}

std::vector<Case> adaptive() {
  return {{"threshold", make_policy("threshold", {{"tau", 0.3}})},
          {"factor", make_policy("factor", {{"f", 2}})},
          {"entropy_bound", make_policy("entropy_bound", {{"gamma", 3}})},
          {"spread", make_policy("spread")}};
}

std::vector<GenerateOptions> settings() {
  std::vector<GenerateOptions> all(5);
  all[0].steps = 5;
  all[1].steps = 9;
  all[1].temperature = 0.8;
  all[1].seed = 11;
  all[2].steps = 8;
  all[2].block_length = 6;
  all[3].steps = 7;
  all[3].refresh_every = 3;
  all[4].steps = 9;
  all[4].refresh_every = 0;
  all[4].block_length = 8;
  all[4].temperature = 1.0;
  all[4].top_k = 4;
  return all;
}

struct Setting {
  std::string name;
  GenerateOptions options;
};

// Every policy in every setting.
std::vector<Setting> settings_of(const std::vector<Case>& cases) {
  std::vector<Setting> all;
  for (const Case& c : cases) {
    for (GenerateOptions options : settings()) {
      options.policy = c.policy;
      all.push_back({std::string(c.name) + ", steps " + std::to_string(options.steps), options});
    }
  }
  return all;
}

struct Both {
  GenerateResult host, device;
};

Both both(const Denoiser& denoiser, GenerateOptions options) {
  options.on_device = false;
  GenerateResult host = generate(denoiser, sequences(), options);
  options.on_device = true;
  return {std::move(host), generate(denoiser, sequences(), options)};
}

void expect_same(const at::Tensor& a, const at::Tensor& b, double limit) {
  ASSERT_EQ(a.sizes(), b.sizes());
  EXPECT_TRUE(at::allclose(a, b, limit, limit, /*equal_nan=*/true)) << a << b;
}

void expect_same(const std::vector<double>& a, const std::vector<double>& b, double limit) {
  expect_same(at::tensor(a, at::kDouble), at::tensor(b, at::kDouble), limit);
}

void expect_same_steps(const GenerateResult& a, const GenerateResult& b) {
  for (size_t i = 0; i < a.tokens.size(); ++i) EXPECT_TRUE(at::equal(a.tokens[i], b.tokens[i]));
  ASSERT_EQ(a.trace.size(), b.trace.size());
  for (size_t i = 0; i < a.trace.size(); ++i) {
    const StepRecord &x = a.trace[i], &y = b.trace[i];
    EXPECT_EQ(x.step, y.step);
    EXPECT_EQ(x.steps, y.steps);
    EXPECT_EQ(x.masked, y.masked);
    EXPECT_EQ(x.eligible, y.eligible);
    EXPECT_TRUE(at::equal(x.sequence, y.sequence));
    EXPECT_TRUE(at::equal(x.position, y.position));
    EXPECT_TRUE(at::equal(x.token, y.token));
    EXPECT_TRUE(at::equal(x.by_confidence, y.by_confidence));
    EXPECT_EQ(y.remasked_position.numel(), 0);
    expect_same(x.confidence, y.confidence, 1e-5);
    expect_same(x.entropy, y.entropy, 1e-5);
    expect_same(x.score, y.score, 1e-5);
    expect_same(x.influence, y.influence, 1e-5);
    expect_same(x.predicted_fall, y.predicted_fall, 1e-5);
    expect_same(x.realised_fall, y.realised_fall, 1e-5);
  }
}

TEST(DeviceLoop, IsTheHostsLoopWhereCountsAreKnown) {
  const auto denoiser = model();
  for (const auto& [name, options] : settings_of(known())) {
    SCOPED_TRACE(name);
    const auto [host, device] = both(*denoiser, options);
    expect_same_steps(host, device);
    EXPECT_EQ(host.forward_rows, device.forward_rows);
    EXPECT_EQ(host.backward_rows, device.backward_rows);
    EXPECT_EQ(host.head_rows, device.head_rows);
    for (size_t i = 0; i < host.trace.size(); ++i) {
      EXPECT_EQ(host.trace[i].scored, device.trace[i].scored);
    }
    EXPECT_TRUE(device.finished);
  }
}

TEST(DeviceLoop, RevealsTheSameInFullStepsWhereCountsAreBounds) {
  const auto denoiser = model();
  for (const auto& [name, options] : settings_of(adaptive())) {
    SCOPED_TRACE(name);
    const auto [host, device] = both(*denoiser, options);
    if (options.refresh_every == 1) {
      expect_same_steps(host, device);
    } else {
      // A frozen context is renewed at other rows as well.
      for (const at::Tensor& t : device.tokens) EXPECT_EQ(t.eq(kMask).sum().item<int64_t>(), 0);
    }
    EXPECT_GE(device.forward_rows, host.forward_rows);
    int64_t forward = 0, head = 0;
    for (const StepRecord& r : device.trace) {
      forward += r.forward_rows;
      head += r.head_rows;
      EXPECT_GT(r.position.numel(), 0);
    }
    EXPECT_EQ(forward, device.forward_rows);
    EXPECT_EQ(head, device.head_rows);
  }
}

TEST(DeviceLoop, SteersByTheSameInfluenceBesideRowsThatOnlyFillUp) {
  // Against the exact sets of the host only where no row fills up: in the first step of a decode
  // that accepts nothing.
  const auto denoiser = model();
  BoEOptions o;
  o.factor = 1e-6;
  GenerateOptions options;
  options.steps = 5;
  options.policy = boe(o);
  const auto [host, device] = both(*denoiser, options);
  expect_same(host.trace[0].influence, device.trace[0].influence, 1e-5);
  EXPECT_TRUE(at::equal(host.trace[0].position, device.trace[0].position));
  for (const at::Tensor& t : device.tokens) EXPECT_EQ(t.eq(kMask).sum().item<int64_t>(), 0);
}

TEST(DeviceLoop, BucketsChangeNoFullStep) {
  const auto denoiser = model();
  for (const Case& c : known()) {
    SCOPED_TRACE(c.name);
    GenerateOptions options;
    options.steps = 6;
    options.policy = c.policy;
    const GenerateResult exact = Loop(Decode(*denoiser, sequences(), options)).run();
    const GenerateResult rounded = DeviceLoop(Decode(*denoiser, sequences(), options), 8).run();
    expect_same_steps(exact, rounded);
    EXPECT_GT(rounded.head_rows, exact.head_rows);
  }
}

TEST(DeviceLoop, SaysWhyItCannotBe) {
  const auto denoiser = model();
  const auto refusal = [&](const std::function<void(GenerateOptions&)>& change) -> std::string {
    GenerateOptions options;
    options.on_device = true;
    change(options);
    try {
      generate(*denoiser, sequences(), options);
    } catch (const InputError& error) {
      return error.what();
    }
    return {};
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(has(refusal([](GenerateOptions& o) { o.cfg_scale = 1; }), "guidance"));
  EXPECT_TRUE(has(refusal([](GenerateOptions& o) {
                    o.callback = [](const StepRecord&, const std::vector<at::Tensor>&) {
                      return true;
                    };
                  }),
                  "callback"));
  for (const char* name : {"klass", "remdm_cap", "lookum", "boe_paper"}) {
    EXPECT_TRUE(has(refusal([&](GenerateOptions& o) { o.policy = make_policy(name); }), "host"))
        << name;
  }
}

// A model whose gradient went wrong.
class Poisoned : public Transformer {
 public:
  using Transformer::Transformer;
  EntropyGradient entropy_gradient(const GradientRequest& request) const override {
    EntropyGradient g = Transformer::entropy_gradient(request);
    g.gradient[0].fill_(std::numeric_limits<double>::quiet_NaN());
    return g;
  }
};

TEST(DeviceLoop, NamesWhatIsNotANumber) {
  RandomWeights weights;
  const Poisoned denoiser(small(), weights, at::kCPU, at::kFloat, false);
  GenerateOptions options;
  options.on_device = true;
  options.steps = 5;
  options.policy = boe(without_factor());
  try {
    generate(denoiser, sequences(), options);
    FAIL() << "no error";
  } catch (const NumericsError& error) {
    EXPECT_EQ(std::string(error.what()).find("step 0, sequence 0, position"), 0U) << error.what();
  }
}

// The meta device has shapes and no numbers: whatever reads one fails. What LibTorch itself lacks
// there is given here, by its shapes.
at::Tensor index_select_shape(const at::Tensor& t, int64_t dim, const at::Tensor& index) {
  std::vector<int64_t> sizes = t.sizes().vec();
  sizes[at::maybe_wrap_dim(dim, t.dim())] = index.numel();
  return at::empty(sizes, t.options());
}
at::Tensor where_shape(const at::Tensor& c, const at::Tensor& x, const at::Tensor& y) {
  const auto sizes = at::infer_size(at::infer_size(c.sizes(), x.sizes()), y.sizes());
  return at::empty(sizes, c.options().dtype(at::result_type(x, y)));
}
at::Tensor& same_shape(const at::Tensor& x, at::Tensor& out) {
  out.resize_(x.sizes());
  return out;
}
TORCH_LIBRARY_IMPL(aten, Meta, m) {
  m.impl("where.self", where_shape);
  m.impl("searchsorted.Tensor",
         [](const at::Tensor&, const at::Tensor& x, bool, bool, std::optional<c10::string_view>,
            const std::optional<at::Tensor>&) {
           return at::empty(x.sizes(), x.options().dtype(at::kLong));
         });
  m.impl("logical_not.out", same_shape);
  m.impl("abs.out", same_shape);
  m.impl("where.self_out",
         [](const at::Tensor& c, const at::Tensor& x, const at::Tensor& y,
            at::Tensor& out) -> at::Tensor& {
           out.resize_(where_shape(c, x, y).sizes());
           return out;
         });
  m.impl("index_select", index_select_shape);
}

class Unread : public DeviceLoop {
 public:
  using DeviceLoop::DeviceLoop;
  int64_t steps() {
    open();
    int64_t number = 0;
    for (; unfinished(); ++number) {
      keep_unfinished();
      const Pending step = launch(number, number > 0);
      TORCH_CHECK(step.rows.is_meta() && step.sequences.is_meta());
      for (Canvas& c : canvases_) {
        if (!c.schedule.done()) c.schedule.advance(c.schedule.quota());
      }
    }
    return number;
  }

 private:
  void send(Pending&) const override {}
};

TEST(DeviceLoop, ReadsNothingOnTheHost) {
  RandomWeights weights;
  const Transformer single(small(), weights, at::kMeta, at::kFloat, false);
  const Transformer half(small(), weights, at::kMeta, at::kHalf, false);
  EXPECT_THROW(at::empty({1}, at::kMeta).item<float>(), c10::Error);
  std::vector<Case> cases = known();
  for (const Case& c : adaptive()) cases.push_back(c);
  cases.push_back({"boe with factor", boe({})});
  for (const auto& [name, options] : settings_of(cases)) {
    SCOPED_TRACE(name);
    EXPECT_GT(Unread(Decode(single, sequences(), options)).steps(), 1);
    EXPECT_GT(Unread(Decode(half, sequences(), options)).steps(), 1);
  }
}

TEST(DeviceSelect, IsTheHostsSelection) {
  at::manual_seed(2);
  for (int trial = 0; trial < 30; ++trial) {
    const int64_t k = 1 + trial % 7;
    const at::Tensor c = (at::rand({3, k}, at::kDouble) * 4).round().div(4);  // with ties
    const at::Tensor valid = at::rand({3, k}).lt(0.8);
    const at::Tensor ranks = rank_by(c, valid);
    for (double f : {0.5, 1.0, 4.0}) {
      const at::Tensor n = within_factor(c, valid, f);
      for (int64_t b = 0; b < 3; ++b) {
        std::vector<double> own;
        for (int64_t i = 0; i < k; ++i) {
          if (valid[b][i].item<bool>()) own.push_back(c[b][i].item<double>());
        }
        std::vector<double> falling = own;
        std::sort(falling.begin(), falling.end(), std::greater<>());
        const int64_t count = own.empty() ? 0 : within_factor(falling, f);
        EXPECT_EQ(n[b].item<int64_t>(), count);
        const std::vector<int64_t> best =
            largest(own.data(), 0, static_cast<int64_t>(own.size()), count);
        std::vector<int64_t> chosen;
        for (int64_t i = 0, place = 0; i < k; ++i) {
          if (!valid[b][i].item<bool>()) continue;
          if (ranks[b][i].item<int64_t>() < count) chosen.push_back(place);
          ++place;
        }
        EXPECT_EQ(chosen, best);
      }
    }
  }
}

TEST(Schedule, BoundsHoldForStepsNotYetKnown) {
  Schedule s(HostTokens(10, kMask), kMask, 6, 5, 0, Pace::adaptive);  // three steps a block
  EXPECT_EQ(s.most_eligible(1), 5);  // the next block's, if the first is done by then
  EXPECT_EQ(s.most_quota(), 2);
  s.advance(5);
  EXPECT_EQ(s.most_eligible(1), 4);
  s.advance(2);
  EXPECT_EQ(s.eligible(), 3);
  EXPECT_EQ(s.most_quota(), 2);
}

}  // namespace
}  // namespace tabes
