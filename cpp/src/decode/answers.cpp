#include "decode/answers.h"

#include "messages.h"

namespace tabes {
namespace {

std::string described(const at::Tensor& t) {
  return t.defined() ? text(t.scalar_type(), " of shape ", t.sizes(), " on ", t.device())
                     : "nothing";
}

// A plain tensor of these sizes and of a type that is_wanted, elsewhere only if it need not be on
// `device`.
template <typename IsWanted>
void check(const Policy& policy, const char* what, const at::Tensor& t, at::IntArrayRef sizes,
           std::optional<at::Device> device, const char* type, IsWanted&& is_wanted) {
  const bool plain = t.defined() && t.layout() == at::kStrided && !t.is_quantized();
  const bool there = plain && (device ? t.device() == *device : !t.is_meta());
  if (there && t.sizes() == sizes && is_wanted(t.scalar_type())) return;
  refuse("policy ", policy.name(), " gave ", what, " as ", described(t), "; ", type, " of shape ",
         sizes, device ? text(" on ", *device) : "", " is wanted");
}

bool is_real(at::ScalarType type) {
  return at::isFloatingType(type) || at::isIntegralType(type, /*includeBool=*/true);
}

at::Tensor reals(const Policy& policy, const char* what, const at::Tensor& t, at::IntArrayRef sizes,
                 std::optional<at::Device> device) {
  check(policy, what, t, sizes, device, "a real tensor", is_real);
  return t.detach().to(device.value_or(at::kCPU), at::kDouble).contiguous();
}

}  // namespace

Decision checked(const Policy& policy, Decision given, int64_t eligible, int64_t sequences,
                 int64_t rows) {
  given.score = reals(policy, "scores", given.score, {eligible}, {});
  if (given.influence.defined()) {
    given.influence = reals(policy, "influence", given.influence, {eligible}, {});
  }
  const int64_t counts = policy.pace() == Pace::quota ? 0 : sequences;
  if (static_cast<int64_t>(given.count.size()) != counts) {
    refuse("policy ", policy.name(), " gave ", given.count.size(), " counts for ", counts,
           " sequences of its pace; ",
           counts > 0 ? "a Decision needs one for each sequence"
                      : "give none where the schedule says how many, or another pace");
  }
  int64_t before = -1;
  for (const int64_t row : given.probes) {
    if (row <= before || row >= rows) {
      refuse("policy ", policy.name(), " names row ", row, " as a probe; probes are rows of the ",
             "batch, from 0 to ", rows - 1, " and increasing");
    }
    before = row;
  }
  return given;
}

DeviceDecision checked(const Policy& policy, DeviceDecision given, at::IntArrayRef sizes,
                       at::Device device) {
  given.score = reals(policy, "scores", given.score, sizes, device);
  if (given.influence.defined()) {
    given.influence = reals(policy, "influence", given.influence, sizes, device);
  }
  if (given.probe.defined()) {
    check(policy, "probes", given.probe, sizes, device, "a bool tensor",
          [](at::ScalarType t) { return t == at::kBool; });
  }
  const bool counts = policy.pace() != Pace::quota;
  if (counts || given.count.defined()) {
    check(policy, "counts", given.count, {counts ? sizes[0] : 0}, device, "an int64 tensor",
          [](at::ScalarType t) { return t == at::kLong; });
  }
  return given;
}

void check_count(const Policy& policy, int64_t count, int64_t least, int64_t eligible) {
  if (count >= least && count <= eligible) return;
  refuse("policy ", policy.name(), " reveals ", count, " rows of a sequence; ", least, " to ",
         eligible, " are possible");
}

}  // namespace tabes
