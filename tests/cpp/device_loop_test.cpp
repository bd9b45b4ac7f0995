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
#include "decode_cases.h"
#include "model/transformer.h"

namespace tabes {
namespace {

struct Both {
  GenerateResult host, device;
};

Both both(const Denoiser& denoiser, GenerateOptions options) {
  options.on_device = false;
  GenerateResult host = generate(denoiser, sequences(), options);
  options.on_device = true;
  return {std::move(host), generate(denoiser, sequences(), options)};
}

TEST(DeviceLoop, IsTheHostsLoopWhereCountsAreKnown) {
  const auto denoiser = model();
  for (const auto& [name, options] : settings_of(known())) {
    SCOPED_TRACE(name);
    const auto [host, device] = both(*denoiser, options);
    expect_same_steps(host, device);
    EXPECT_EQ(host.cost.forward_rows, device.cost.forward_rows);
    EXPECT_EQ(host.cost.backward_rows, device.cost.backward_rows);
    EXPECT_EQ(host.cost.head_rows, device.cost.head_rows);
    for (size_t i = 0; i < host.trace.size(); ++i) {
      EXPECT_EQ(host.trace[i].scored, device.trace[i].scored);
    }
    EXPECT_TRUE(device.finished);
  }
}

TEST(DeviceLoop, RevealsTheSameWhereCountsAreBounds) {
  const auto denoiser = model();
  for (const auto& [name, options] : settings_of(adaptive())) {
    SCOPED_TRACE(name);
    const auto [host, device] = both(*denoiser, options);
    expect_same_steps(host, device);
    EXPECT_GE(device.cost.forward_rows, host.cost.forward_rows);
    int64_t forward = 0, head = 0;
    for (const StepRecord& r : device.trace) {
      forward += r.cost.forward_rows;
      head += r.cost.head_rows;
      EXPECT_GT(r.position.numel(), 0);
    }
    EXPECT_EQ(forward, device.cost.forward_rows);
    EXPECT_EQ(head, device.cost.head_rows);
  }
}

TEST(DeviceLoop, BucketsChangeNothing) {
  const auto denoiser = model();
  for (const auto& [name, options] : settings_of(known_and_adaptive())) {
    SCOPED_TRACE(name);
    const GenerateResult exact = Loop(Decode(*denoiser, sequences(), options)).run();
    const GenerateResult rounded = DeviceLoop(Decode(*denoiser, sequences(), options), 8).run();
    expect_same_steps(exact, rounded);
    EXPECT_GT(rounded.cost.head_rows, exact.cost.head_rows);
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
  EXPECT_TRUE(has(refusal([](GenerateOptions& o) {
                    o.policy = make_policy("boe_paper");
                    o.block_length = 6;
                  }),
                  "later blocks"));
  for (const char* name : {"klass", "remdm_cap", "lookum"}) {
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
  for (const auto& [name, options] : settings_of(known_and_adaptive())) {
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
