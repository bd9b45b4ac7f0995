// Passes that are recorded and replayed, with a recorder for the CPU that has the manners of CUDA
// graphs (call_recorder.h).
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <thread>

#include "batch/rows.h"
#include "batch/uploads.h"
#include "call_recorder.h"
#include "decode/device_loop.h"
#include "decode_cases.h"
#include "replay/pass_graphs.h"

namespace tabes {
namespace {

using Tensors = PassGraphs::Tensors;

class Replay : public testing::Test {
 protected:
  CallRecorderScope recorder_;
};

at::Tensor numbers(std::initializer_list<double> values) {
  return at::tensor(std::vector<double>(values), at::kDouble);
}

TEST_F(Replay, ComputesNewResultsFromNewInputs) {
  PassGraphs graphs(at::kCPU);
  int runs = 0;
  const PassGraphs::Work work = [&](const Tensors& in) -> Tensors {
    ++runs;
    at::Tensor sum = in[0] + in[1];
    sum.mul_(2);
    return {sum.narrow(0, 0, 1), sum};
  };
  const auto check = [&](double a, double b) {
    const Tensors out = graphs.run({1}, {numbers({a, a}), numbers({b, b + 1})}, work);
    EXPECT_TRUE(at::equal(out[0], numbers({2 * (a + b)})));
    EXPECT_TRUE(at::equal(out[1], numbers({2 * (a + b), 2 * (a + b + 1)})));
  };
  check(1, 2);
  EXPECT_EQ(runs, 1);  // a shape that does not come back is not worth a recording
  EXPECT_EQ(graphs.recorded(), 0);
  check(3, 4);
  EXPECT_EQ(runs, 3);
  EXPECT_EQ(graphs.recorded(), 1);
  check(5, -6);
  check(0, 0);
  EXPECT_EQ(runs, 3);
  EXPECT_EQ(graphs.replayed(), 3);
}

TEST_F(Replay, ResultsOutliveTheNextReplay) {
  PassGraphs graphs(at::kCPU);
  const PassGraphs::Work work = [](const Tensors& in) -> Tensors { return {in[0] + 1}; };
  Tensors results;
  for (int round = 0; round < 3; ++round) {
    for (int64_t shape = 0; shape < 2; ++shape) {
      results.push_back(graphs.run({shape}, {numbers({static_cast<double>(round)})}, work)[0]);
    }
  }
  for (size_t i = 0; i < results.size(); ++i) {
    EXPECT_EQ(results[i].item<double>(), static_cast<double>(i / 2) + 1);
  }
}

TEST_F(Replay, SendsNothingToTheDeviceWhileItRecords) {
  PassGraphs graphs(at::kCPU);
  // Sends the same numbers every time.
  const PassGraphs::Work same = [](const Tensors& in) -> Tensors {
    return {in[0] + to_tensor({1, 2})};
  };
  // Sends others every time.
  int64_t count = 0;
  const PassGraphs::Work other = [&](const Tensors& in) -> Tensors {
    return {in[0] + to_tensor({++count})};
  };
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(at::equal(graphs.run({0}, {numbers({1})}, same)[0], numbers({2, 3})));
    const int64_t before = count;
    const at::Tensor out = graphs.run({1}, {numbers({0})}, other)[0];
    EXPECT_EQ(out.item<double>(), static_cast<double>(count));
    EXPECT_GT(count, before);
  }
  EXPECT_EQ(graphs.recorded(), 1);
  EXPECT_EQ(graphs.replayed(), 3);
}

TEST_F(Replay, DoesWithoutWhereANumberIsRead) {
  PassGraphs graphs(at::kCPU);
  const PassGraphs::Work work = [](const Tensors& in) -> Tensors {
    return {in[0] * in[0].sum().item<double>()};
  };
  for (double a : {1.0, 2.0, 3.0, 4.0}) {
    EXPECT_EQ(graphs.run({}, {numbers({a})}, work)[0].item<double>(), a * a);
  }
  EXPECT_EQ(graphs.recorded(), 0);
}

TEST_F(Replay, PassesOnWhatTheWorkThrows) {
  PassGraphs graphs(at::kCPU);
  const PassGraphs::Work work = [](const Tensors&) -> Tensors { throw InputError("no"); };
  for (int i = 0; i < 3; ++i) EXPECT_THROW(graphs.run({}, {}, work), InputError);
}

TEST_F(Replay, KeepsTheGraphsUsedLast) {
  PassGraphs graphs(at::kCPU);
  const PassGraphs::Work work = [](const Tensors& in) -> Tensors { return {in[0] * 3}; };
  const auto most = static_cast<int64_t>(PassGraphs::kMostGraphs);
  const auto run = [&](int64_t shape) {
    EXPECT_EQ(graphs.run({shape}, {numbers({2})}, work)[0].item<double>(), 6);
  };
  for (int64_t shape = 0; shape < most; ++shape) run(shape), run(shape);
  EXPECT_EQ(graphs.recorded(), most);
  run(0);
  run(most), run(most);  // in the place of shape 1
  EXPECT_EQ(graphs.recorded(), most + 1);
  run(0);
  EXPECT_EQ(graphs.recorded(), most + 1);
  run(1), run(1);
  EXPECT_EQ(graphs.recorded(), most + 2);
  graphs.forget();
  run(0);
  EXPECT_EQ(graphs.recorded(), most + 3);
}

TEST_F(Replay, IsForOneAtATime) {
  PassGraphs graphs(at::kCPU);
  ASSERT_TRUE(graphs.try_acquire());
  bool second = true;
  std::thread([&] { second = graphs.try_acquire(); }).join();
  EXPECT_FALSE(second);
  graphs.release();
  ASSERT_TRUE(graphs.try_acquire());
  graphs.release();
}

GenerateResult decode(const Denoiser& denoiser, GenerateOptions options, bool replay,
                      bool on_device) {
  options.cuda_graphs = replay;
  options.on_device = on_device;
  return generate(denoiser, sequences(), options);
}

void expect_same_rows(const GenerateResult& a, const GenerateResult& b) {
  EXPECT_EQ(a.cost.forward_rows, b.cost.forward_rows);
  EXPECT_EQ(a.cost.backward_rows, b.cost.backward_rows);
  EXPECT_EQ(a.cost.head_rows, b.cost.head_rows);
}

TEST_F(Replay, DecodesOnTheDeviceAreTheSame) {
  const auto denoiser = model();
  for (const auto& [name, options] : settings_of(known_and_adaptive())) {
    SCOPED_TRACE(name);
    const GenerateResult eager = DeviceLoop(Decode(*denoiser, sequences(), options), 32).run();
    EXPECT_EQ(eager.replayed_passes, 0);
    for (int round = 0; round < 2; ++round) {
      const GenerateResult replayed = decode(*denoiser, options, true, true);
      expect_same_steps(eager, replayed);
      expect_same_rows(eager, replayed);
    }
    const int before = CallRecorderScope::recordings();
    const GenerateResult again = decode(*denoiser, options, true, true);
    expect_same_steps(eager, again);
    // A decode like one before records nothing and replays all.
    EXPECT_EQ(CallRecorderScope::recordings(), before);
    EXPECT_GE(again.replayed_passes, static_cast<int64_t>(again.trace.size()));
  }
  EXPECT_GT(CallRecorderScope::recordings(), 0);
}

TEST_F(Replay, DecodesOnTheHostAreTheSameForEveryKindOfModel) {
  BoEOptions exact, dense;
  exact.context = ContextKind::exact;
  dense.context = ContextKind::exact;
  dense.adjoint = AdjointKind::dense;
  BoEOptions averaged;
  averaged.alpha = {0.25, 0.75};
  averaged.halo = 1;
  const std::vector<Case> cases{{"boe", boe({})},
                                {"boe exact", boe(exact)},
                                {"boe dense", boe(dense)},
                                {"boe averaged", boe(averaged)},
                                {"boe_paper", make_policy("boe_paper")},
                                {"klass", make_policy("klass")},
                                {"lookum", make_policy("lookum")},
                                {"info_gain", make_policy("info_gain")},
                                {"remdm_conf", make_policy("remdm_conf")},
                                {"confidence", make_policy("confidence")}};
  for (const Kind& kind : kinds()) {
    at::manual_seed(3);
    RandomWeights weights;
    const auto denoiser = make_transformer(kind.config, weights, at::kCPU, at::kFloat, true);
    for (const auto& [name, options] : settings_of(cases)) {
      // Draws, and frozen steps in blocks: of the settings those that differ most.
      if (options.temperature == 0) continue;
      SCOPED_TRACE(kind.name + ": " + name);
      const GenerateResult eager = decode(*denoiser, options, false, false);
      for (int round = 0; round < 3; ++round) {
        const GenerateResult replayed = decode(*denoiser, options, true, false);
        expect_same_steps(eager, replayed);
        expect_same_rows(eager, replayed);
        if (round == 2) {
          EXPECT_GT(replayed.replayed_passes, 0);
        }
      }
    }
  }
}

TEST_F(Replay, ADecodeWithinADecodeDoesWithout) {
  const auto denoiser = model();
  GenerateOptions options;
  options.steps = 4;
  options.policy = boe({});
  options.refresh_every = 2;
  const GenerateResult eager = decode(*denoiser, options, false, false);
  decode(*denoiser, options, true, false);
  decode(*denoiser, options, true, false);
  GenerateOptions outer = options;
  int64_t inner_replays = 0, steps = 0;
  outer.callback = [&](const StepRecord&, const std::vector<at::Tensor>&) {
    const GenerateResult inner = decode(*denoiser, options, true, false);
    expect_same_steps(eager, inner);
    inner_replays += inner.replayed_passes;
    ++steps;
    return true;
  };
  const GenerateResult result = decode(*denoiser, outer, true, false);
  expect_same_rows(eager, result);
  EXPECT_GT(result.replayed_passes, 0);
  EXPECT_GT(steps, 1);
  EXPECT_EQ(inner_replays, 0);
}

TEST_F(Replay, TwoContextsDoNotShareMemory) {
  const auto denoiser = model();
  const auto replayed = denoiser->replayed();
  ASSERT_NE(replayed, nullptr);
  const std::vector<int64_t> first(9, kMask), second{1, 2, kMask, kMask, 5, 6, 7, 8, 9};
  const PackedBatch a = pack({&first}, at::kCPU), b = pack({&second}, at::kCPU);
  const RowSet rows = row_set({2, 3}, {0, 2}, at::kCPU);
  const auto contexts = [&](const Denoiser& m) {
    std::unique_ptr<Context> of_a, of_b;
    m.encode(a, rows, {}, &of_a);
    m.encode(b, rows, {}, &of_b);
    return std::vector<at::Tensor>{m.encode_active(a, rows, rows, *of_a),
                                   m.encode_active(b, rows, rows, *of_b)};
  };
  const std::vector<at::Tensor> wanted = contexts(*denoiser);
  for (int round = 0; round < 3; ++round) {
    const std::vector<at::Tensor> got = contexts(*replayed);
    for (int i = 0; i < 2; ++i) expect_same(got[i], wanted[i], 1e-6);
  }
}

TEST_F(Replay, LongerBatchesRecordAnew) {
  const auto denoiser = model();
  GenerateOptions options;
  options.steps = 3;
  options.policy = boe(without_factor());
  options.on_device = true;
  options.cuda_graphs = true;
  for (const int64_t length : {6, 6, 6, 30, 30, 30, 6, 6}) {
    const std::vector<at::Tensor> canvas{at::full({length}, kMask, at::kLong)};
    const GenerateResult replayed = generate(*denoiser, canvas, options);
    expect_same_steps(DeviceLoop(Decode(*denoiser, canvas, options), 32).run(), replayed);
  }
}

// Runs out of memory in its second step.
class Greedy : public Policy {
 public:
  std::string name() const override { return "greedy"; }
  Decision decide(const StepContext& step) const override {
    if (step.predictions.token.numel() < 30) throw std::bad_alloc();
    return {step.predictions.confidence.to(at::kCPU, at::kDouble)};
  }
};

TEST_F(Replay, GivesMemoryBackWhereItRunsOut) {
  const auto denoiser = model();
  GenerateOptions options;
  options.steps = 4;
  options.refresh_every = 2;
  const GenerateResult eager = decode(*denoiser, options, false, false);
  decode(*denoiser, options, true, false);
  decode(*denoiser, options, true, false);
  const int before = CallRecorderScope::recordings();
  GenerateOptions greedy = options;
  greedy.policy = std::make_shared<const Greedy>();
  EXPECT_THROW(decode(*denoiser, greedy, true, false), DeviceError);
  const GenerateResult after = decode(*denoiser, options, true, false);
  expect_same_steps(eager, after);
  EXPECT_GT(CallRecorderScope::recordings(), before);
}

TEST(ReplayRefused, WhereNothingRecords) {
  const auto denoiser = model();
  EXPECT_FALSE(denoiser->is_replayable());
  EXPECT_EQ(denoiser->replayed(), nullptr);
  GenerateOptions options;
  options.cuda_graphs = true;
  try {
    generate(*denoiser, sequences(), options);
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_EQ(std::string(error.what()).find("cuda_graphs=true"), 0U) << error.what();
  }
}

}  // namespace
}  // namespace tabes
