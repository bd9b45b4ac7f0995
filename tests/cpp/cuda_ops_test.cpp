// The CUDA operators as the dispatcher calls them, from checks to launches, on CPU tensors: the
// CUDA kernels are asked for by their key, and each launch runs on the CPU (simt.h). Compared with
// the CPU operators.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "ops/call.h"
#include "ops/cuda/device_info.h"
#include "ops/cuda/host.h"
#include "ops/meta.h"
#include "ops/ops.h"
#include "tabes/error.h"

// What only a GPU build has.
namespace tabes::ops {
void* current_stream() {
  return nullptr;
}
}  // namespace tabes::ops
namespace tabes::gpu {
int multiprocessors() {
  return 20;
}
const char* error_text(int) {
  return "an error";
}
}  // namespace tabes::gpu

namespace tabes {
namespace {

using Optional = std::optional<at::Tensor>;

template <typename Signature, typename... Arguments>
auto cuda(const char* name, Arguments&&... arguments) {
  return ops::find_op<Signature>(name).redispatch(c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                                  std::forward<Arguments>(arguments)...);
}

void expect_close(const at::Tensor& got, const at::Tensor& wanted, double limit) {
  ASSERT_EQ(got.sizes(), wanted.sizes());
  ASSERT_EQ(got.scalar_type(), wanted.scalar_type());
  if (got.numel() == 0) return;
  const at::Tensor a = got.to(at::kDouble), b = wanted.to(at::kDouble);
  EXPECT_LE((a - b).abs().max().item<double>(),
            limit * std::max(1.0, b.abs().max().item<double>()));
}

class CudaOps : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override { at::manual_seed(3); }
  at::Tensor random(at::IntArrayRef sizes) const { return at::randn(sizes).to(GetParam()); }
  double limit() const { return GetParam() == at::kFloat ? 4e-6 : 1.6e-2; }
};
INSTANTIATE_TEST_SUITE_P(Types, CudaOps, testing::Values(at::kFloat, at::kBFloat16));

TEST_P(CudaOps, Norms) {
  const at::Tensor wide = random({5, 48}), x = wide.narrow(1, 3, 40), w = at::randn({40});
  const at::Tensor grad = random({5, 40});
  expect_close(cuda<decltype(ops::rms_norm)>("tabes::rms_norm", x, w, 1e-5),
               ops::rms_norm(x, w, 1e-5), limit());
  expect_close(cuda<decltype(ops::rms_norm_backward)>("tabes::rms_norm_backward", grad, x, w, 1e-5),
               ops::rms_norm_backward(grad, x, w, 1e-5), limit());
  const at::Tensor none = random({0, 40});
  EXPECT_EQ(cuda<decltype(ops::rms_norm)>("tabes::rms_norm", none, w, 1e-5).numel(), 0);
}

TEST_P(CudaOps, Rope) {
  const at::Tensor x = random({4, 100}), angle = at::randn({9, 16});
  const at::Tensor positions = at::tensor({3, 0, 8, 3}, at::kLong);
  for (bool inverse : {false, true}) {
    const at::Tensor a = x.clone(), b = x.clone();
    cuda<decltype(ops::rope_)>("tabes::rope_", a, 3, angle.cos(), angle.sin(), positions, inverse);
    ops::rope_(b, 3, angle.cos(), angle.sin(), positions, inverse);
    expect_close(a, b, limit());
  }
}

TEST_P(CudaOps, Gates) {
  const at::Tensor x = random({4, 60}), grad = random({4, 30});
  for (const char* act : {"silu", "gelu"}) {
    expect_close(cuda<decltype(ops::gated_meta)>("tabes::gated", x, act), ops::gated(x, act),
                 limit());
    expect_close(cuda<decltype(ops::gated_backward_meta)>("tabes::gated_backward", grad, x, act),
                 ops::gated_backward(grad, x, act), limit());
  }
}

TEST_P(CudaOps, StatisticsAndTheirAdjoint) {
  at::Tensor logits = 3 * random({3, 20000});  // several blocks a row
  logits.select(1, 7).fill_(-std::numeric_limits<float>::infinity());
  const auto [lse, entropy, max_prob, margin, argmax] =
      cuda<decltype(ops::row_statistics_meta)>("tabes::row_statistics", logits);
  const ops::RowStatistics s = ops::row_statistics(logits);
  expect_close(lse, s.lse, 4e-6);
  expect_close(entropy, s.entropy, 4e-6);
  expect_close(max_prob, s.max_prob, 4e-6);
  expect_close(margin, s.margin, 4e-6);
  EXPECT_TRUE(at::equal(argmax, s.argmax));
  const at::Tensor weight = at::tensor({1.0f, 0.0f, -2.0f}), a = logits.clone();
  cuda<decltype(ops::entropy_adjoint_)>("tabes::entropy_adjoint_", a, argmax, max_prob, entropy,
                                        weight);
  ops::entropy_adjoint_(logits, s.argmax, s.max_prob, s.entropy, weight);
  expect_close(a * 1e3, logits * 1e3, limit());
}

TEST_P(CudaOps, Samples) {
  const at::Tensor logits = random({6, 300});
  const at::Tensor u = at::rand({6}, at::kDouble);
  for (int64_t top_k : {0, 20}) {
    for (double top_p : {1.0, 0.7}) {
      // The seed is fixed; a draw within a rounding of two tokens' border could differ.
      EXPECT_TRUE(at::equal(
          cuda<decltype(ops::sample_rows)>("tabes::sample_rows", logits, u, 0.9, top_k, top_p),
          ops::sample_rows(logits, u, 0.9, top_k, top_p)));
    }
  }
}

TEST(CudaOp, UniformsAreTheSameBits) {
  const at::Tensor b = at::tensor({0, 3, 3}, at::kLong), i = at::tensor({7, 7, 9}, at::kLong);
  const at::Tensor t = at::tensor({5, 5, 2}, at::kLong);
  const int64_t stream = static_cast<int64_t>(Stream::order);
  EXPECT_TRUE(at::equal(
      cuda<decltype(ops::counter_uniforms_meta)>("tabes::counter_uniforms", b, i, t, -3, stream),
      ops::counter_uniforms(b, i, t, static_cast<uint64_t>(-3), Stream::order)));
}

struct Attention {
  std::vector<int64_t> cu_k{0, 70, 75, 140}, cu_q{0, 66, 66, 75}, cu_keys{0, 5, 7, 10},
      cu_queries{0, 3, 3, 5};
  at::Tensor keys = at::tensor({0, 4, 33, 68, 69, 70, 74, 75, 100, 139}, at::kLong);
  at::Tensor queries = at::tensor({0, 10, 65, 66, 74}, at::kLong);
  double scale = 0.2;
};

using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Backward = Three(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                       const at::Tensor&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, double,
                       const Optional&, const Optional&, at::IntArrayRef, const Optional&,
                       const Optional&);
constexpr const char* kBackward = "tabes::active_query_attention_backward";

TEST_P(CudaOps, AttentionAdjoint) {
  const Attention a;
  const int64_t heads = 4, groups = 2, d = 32;
  // Keys and values as slices of one matrix, queries at rows 16 bytes do not divide.
  const at::Tensor kv = random({140, 2 * groups * d});
  const at::Tensor k = kv.narrow(1, 0, groups * d).unflatten(1, {groups, d});
  const at::Tensor v = kv.narrow(1, groups * d, groups * d).unflatten(1, {groups, d});
  const at::Tensor q = random({75, heads * d + 3}).narrow(1, 0, heads * d).unflatten(1, {heads, d});
  // Gradients without gaps that start in the middle of 16 bytes.
  const at::Tensor grad =
      random({75 * heads * d + 1}).narrow(0, 1, 75 * heads * d).view({75, heads * d});
  const at::Tensor bias = random({75, 72});
  // The forward pass at the queries, written out.
  at::Tensor out = at::empty({75, heads * d}, q.options());
  at::Tensor lse = at::empty({75, heads});
  for (size_t b = 0; b + 1 < a.cu_k.size(); ++b) {
    const auto part = [&](const at::Tensor& t, const std::vector<int64_t>& cu) {
      return t.narrow(0, cu[b], cu[b + 1] - cu[b]).transpose(0, 1).to(at::kDouble);
    };
    const auto each = [&](const at::Tensor& t) { return t.repeat_interleave(heads / groups, 0); };
    const at::Tensor score =
        at::matmul(part(q, a.cu_q), each(part(k, a.cu_k)).transpose(1, 2)) * a.scale;
    const auto rows = [&](const at::Tensor& t) {
      return t.narrow(0, a.cu_q[b], a.cu_q[b + 1] - a.cu_q[b]);
    };
    rows(lse).copy_(score.logsumexp(2).t());
    rows(out).copy_(at::matmul(score.softmax(2), each(part(v, a.cu_k))).transpose(0, 1).flatten(1));
  }
  setenv("TABES_ATTENTION", "own", 1);  // PyTorch's routes need its CUDA build
  const auto compare = [&](const Optional& added, bool subset, bool kept) {
    const Optional queries = subset ? Optional(a.queries) : std::nullopt;
    const std::vector<int64_t> cu_queries = subset ? a.cu_queries : std::vector<int64_t>();
    const auto [dq, dk, dv] = cuda<Backward>(
        kBackward, grad, q, k, v, a.keys, a.cu_keys, a.cu_q, a.cu_k, a.scale, added, queries,
        cu_queries, kept ? Optional(out) : std::nullopt, kept ? Optional(lse) : std::nullopt);
    // Against float64, since both round bfloat16 on the way.
    const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
    const ops::AttentionGradient g = ops::active_query_attention_backward(
        wide(grad), wide(q), wide(k), wide(v), a.keys, a.cu_keys, a.cu_q, a.cu_k, a.scale,
        added ? Optional(wide(*added)) : std::nullopt, queries, cu_queries);
    expect_close(wide(dq), g.dq, limit());
    expect_close(wide(dk), g.dk, limit());
    expect_close(wide(dv), g.dv, limit());
  };
  compare(std::nullopt, false, false);
  compare(std::nullopt, true, true);
  compare(std::nullopt, false, true);
  compare(bias, true, false);
  unsetenv("TABES_ATTENTION");
}

TEST_P(CudaOps, AttentionAdjointOfNothing) {
  const at::Tensor q = random({0, 2, 32}), k = random({4, 2, 32}), keys = at::tensor({1, 2});
  const auto [dq, dk, dv] = cuda<Backward>(
      kBackward, random({0, 64}), q, k, k, keys.to(at::kLong), std::vector<int64_t>{0, 2},
      std::vector<int64_t>{0, 0}, std::vector<int64_t>{0, 4}, 0.2, std::nullopt, std::nullopt,
      std::vector<int64_t>{}, std::nullopt, std::nullopt);
  EXPECT_EQ(dq.size(0), 0);
  EXPECT_EQ(dk.abs().sum().item<double>() + dv.abs().sum().item<double>(), 0.0);
}

template <typename Exception, typename Body>
void expect_message(const Body& body, const char* part) {
  try {
    body();
    FAIL() << "no error";
  } catch (const Exception& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(CudaOp, ErrorsSayWhatToDo) {
  const at::Tensor x = at::zeros({2, 8}, at::kDouble);
  expect_message<DeviceError>([&] { cuda<decltype(ops::gated_meta)>("tabes::gated", x, "silu"); },
                              "use device=\"cpu\"");
  expect_message<DeviceError>([] { ops::check_launch(7, "gated"); }, "CUDA_LAUNCH_BLOCKING=1");
  const auto adjoint = [](int64_t d) {
    const at::Tensor q = at::zeros({1, 1, d}), rows = at::zeros({1}, at::kLong);
    const std::vector<int64_t> cu{0, 1};
    cuda<Backward>(kBackward, at::zeros({1, d}), q, q, q, rows, cu, cu, cu, 1.0, std::nullopt,
                   std::nullopt, std::vector<int64_t>{}, std::nullopt, std::nullopt);
  };
  expect_message<DeviceError>([&] { adjoint(40); }, "32, 64, 96, 128 and 256");
  setenv("TABES_ATTENTION", "fast", 1);
  expect_message<InputError>([&] { adjoint(32); }, "own, flash or efficient");
  setenv("TABES_ATTENTION", "flash", 1);
  expect_message<DeviceError>([&] { adjoint(32); }, "the route TABES_ATTENTION names");
  unsetenv("TABES_ATTENTION");
}

}  // namespace
}  // namespace tabes
