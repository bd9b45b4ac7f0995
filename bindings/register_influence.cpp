#include <pybind11/stl.h>

#include <algorithm>
#include <charconv>
#include <sstream>
#include <variant>

#include "bindings.h"
#include "tabes/boe.h"
#include "tabes/error.h"
#include "tabes/influence.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

template <typename Value>
struct Name {
  const char* name;
  Value value;
};

constexpr Name<ContextKind> kContexts[] = {{"exact", ContextKind::exact},
                                           {"frozen", ContextKind::frozen}};
constexpr Name<AdjointKind> kAdjoints[] = {{"active", AdjointKind::active},
                                           {"dense", AdjointKind::dense}};
constexpr Name<Prefilter> kPrefilters[] = {{"confidence", Prefilter::confidence},
                                           {"margin", Prefilter::margin}};
constexpr Name<ProbeRule> kProbeRules[] = {{"candidates", ProbeRule::candidates},
                                           {"least_entropic", ProbeRule::least_entropic},
                                           {"most_entropic", ProbeRule::most_entropic},
                                           {"random", ProbeRule::random},
                                           {"nearest", ProbeRule::nearest}};

constexpr Name<DraftKind> kDrafts[] = {{"token", DraftKind::token},
                                       {"expected", DraftKind::expected}};
constexpr Name<ScoreRule> kScoreRules[] = {{"product", ScoreRule::product},
                                           {"nats", ScoreRule::nats}};

template <typename Value, size_t n>
std::string known(const Name<Value> (&names)[n]) {
  std::string all;
  for (const auto& entry : names) all += std::string(all.empty() ? "" : ", ") + entry.name;
  return all;
}

template <typename Value, size_t n>
Value named(const Name<Value> (&names)[n], const std::string& what, const std::string& name) {
  for (const auto& entry : names) {
    if (name == entry.name) return entry.value;
  }
  throw InputError(what + " '" + name + "' is unknown; known are " + known(names));
}

template <typename Value, size_t n>
const char* name_of(const Name<Value> (&names)[n], Value value) {
  for (const auto& entry : names) {
    if (entry.value == value) return entry.name;
  }
  return "?";
}

// Python's help; the stub has the same text.
constexpr const char* kBoEDoc =
    R"doc(Backward-on-entropy steering (TABES, arXiv 2602.00250): candidates whose revealing most
lowers the entropy of what stays masked come first.

A candidate's score is ``gamma * log(c) + weight * TIS``, less
``anti_collapse * max(0, h_t - H)**2`` with ``h_t = h_max * steps_left / steps``; c is its
confidence, H its entropy in nats, TIS its token influence score: how much a draft of all
candidates agrees with itself because of this one. Rows that `factor` accepts come first, rows
that are no candidates last, by confidence. A step that the gradient could not change is ordered
by confidence at no cost, and with weight=0 all of them are.

Args:
    n_candidates: how many rows get a score each step: a number of rows, or a multiple of the
        rows the step reveals, as "3x".
    prefilter: which they are: the eligible rows first by "confidence" or by "margin".
    alpha: where between mask (0) and prediction (1) the entropy is differentiated; the
        gradients of several points are averaged. The paper's point is 1.
    draft: what a candidate is taken to become: the "token" that would be written, or the
        "expected" embedding, the mean over its distribution, as in the paper.
    tau: temperature of that distribution; 0: the embedding of the likeliest token.
    rule: "nats", as above, or "product", the paper's: ``c**gamma * minmax(TIS)`` in its place.
    gamma: factor of the confidence's logarithm, or its exponent.
    weight: of the influence, with rule "nats".
    factor: above 0: rows that Fast-dLLM's factor rule accepts with this f are revealed in any
        case, unsteered, and may be more than the schedule's quota; the rest is steered.
    spread: rows of one step that stand close together depend on one another; each row picked
        takes ``spread * exp(-distance / spread_width)`` from the scores of the others.
    spread_width: of that, in positions.
    anti_collapse: weight of the penalty on rows that are certain too early.
    h_max: the entropy floor of that penalty at the first step, in nats.
    probes: whose entropy counts: the "candidates" themselves, or other masked rows, those first
        that are "least_entropic", "most_entropic", "random" or "nearest" (to a candidate).
    rho: at most ceil(rho * L) such other rows, L being the length of the whole sequence.
    halo: rows this close to a candidate or probe are active as well.
    context: "frozen": inactive rows keep the keys and values of the step's forward pass;
        "exact": a full surrogate forward pass, as in the paper.
    adjoint: "active": ActiveQueryAttention; "dense": the ordinary gradient.
    every: steer each sequence's every n-th step.
    min_masked: stop steering a sequence with fewer eligible rows.

Defaults: n_candidates="2x", prefilter="confidence", alpha=0.5, draft="token", tau=1.0,
rule="nats", gamma=1.0, weight=1.0, factor=1.0, spread=3.0, spread_width=3.0,
anti_collapse=0.0, h_max=0.3, probes="candidates", rho=1.0, halo=0, context="frozen",
adjoint="active", every=1, min_masked=0.

Raises InputError for a value of the wrong kind or out of range, and for an unknown name.)doc";

// A number of rows, or "3x" for three times the rows the step reveals.
using Count = std::variant<int64_t, std::string>;

void set_candidates(BoEOptions& options, const Count& count) {
  if (const int64_t* rows = std::get_if<int64_t>(&count)) {
    options.n_candidates = static_cast<double>(*rows);
    options.per_quota = false;
    return;
  }
  const std::string& written = std::get<std::string>(count);
  const char* end = nullptr;
  double multiple = 0;
  if (!written.empty() && written.back() == 'x') {
    const auto parsed =
        std::from_chars(written.data(), written.data() + written.size() - 1, multiple);
    if (parsed.ec == std::errc()) end = parsed.ptr;
  }
  if (end != written.data() + written.size() - 1) {
    throw InputError("n_candidates '" + written +
                     "' is neither a number of rows nor a multiple of the quota such as '3x'");
  }
  options.n_candidates = multiple;
  options.per_quota = true;
}

Count candidates_of(const BoEOptions& options) {
  if (!options.per_quota) return static_cast<int64_t>(options.n_candidates);
  std::ostringstream out;
  out << options.n_candidates << 'x';
  return out.str();
}

// The keyword arguments of BoE. Bound as named arguments they would fail with pybind11's TypeError,
// which names neither the argument nor the cure.
class Keywords {
 public:
  explicit Keywords(const py::kwargs& given) : given_(given) {}

  void number(const char* name, double& into) { read(name, into, "a number"); }
  void integer(const char* name, int64_t& into) { read(name, into, "an integer"); }

  template <typename Value, size_t n>
  void choice(const char* name, const Name<Value> (&names)[n], Value& into) {
    std::string written;
    if (read(name, written, "one of " + known(names))) into = named(names, name, written);
  }

  void count(const char* name, BoEOptions& into) {
    Count count;
    if (read(name, count, "a number of rows, or a multiple such as '3x'")) {
      set_candidates(into, count);
    }
  }

  // One point or several.
  void points(const char* name, std::vector<double>& into) {
    const py::object value = take(name);
    double one = 0;
    if (!value) return;
    if (converted(value, one)) {
      into = {one};
      return;
    }
    std::vector<double> several;
    if (!py::isinstance<py::str>(value) && py::hasattr(value, "__iter__")) {
      for (const py::handle point : value) {
        if (!converted(point, one)) refuse(name, value, "a number or a list of numbers");
        several.push_back(one);
      }
      into = std::move(several);
      return;
    }
    refuse(name, value, "a number or a list of numbers");
  }

  // Throws InputError for what has not been read, with the nearest name that has.
  void finish() const {
    for (const auto& [key, value] : given_) {
      const auto name = key.cast<std::string>();
      if (std::find(names_.begin(), names_.end(), name) != names_.end()) continue;
      const auto nearest = py::module_::import("difflib")
                               .attr("get_close_matches")(name, names_, 1, 0.5)
                               .cast<std::vector<std::string>>();
      std::string cure = "; it takes ";
      for (const std::string& known : names_) cure += (&known == &names_[0] ? "" : ", ") + known;
      if (!nearest.empty()) cure = ": did you mean '" + nearest[0] + "'?";
      throw InputError("BoE has no argument '" + name + "'" + cure);
    }
  }

 private:
  py::object take(const char* name) {
    names_.emplace_back(name);
    return given_.contains(name) ? py::object(given_[name]) : py::object();
  }

  template <typename T>
  bool read(const char* name, T& into, const std::string& wanted) {
    const py::object value = take(name);
    if (!value) return false;
    if (!converted(value, into)) refuse(name, value, wanted);
    return true;
  }

  // True and False are numbers to Python, but no caller means them.
  template <typename T>
  static bool converted(const py::handle& value, T& into) {
    if (PyBool_Check(value.ptr())) return false;
    py::detail::make_caster<T> caster;
    if (!caster.load(value, true)) return false;
    into = py::detail::cast_op<T>(std::move(caster));
    return true;
  }

  [[noreturn]] static void refuse(const char* name, const py::object& value,
                                  const std::string& wanted) {
    throw InputError(std::string(name) + "=" + py::repr(value).cast<std::string>() +
                     ": it must be " + wanted);
  }

  const py::kwargs& given_;
  std::vector<std::string> names_;
};

std::shared_ptr<BoE> make_boe(const py::args& positional, const py::kwargs& given) {
  if (!positional.empty()) {
    throw InputError("BoE takes its settings by name: BoE(n_candidates=...)");
  }
  BoEOptions o;
  Keywords read(given);
  read.count("n_candidates", o);
  read.choice("prefilter", kPrefilters, o.prefilter);
  read.points("alpha", o.alpha);
  read.choice("draft", kDrafts, o.draft);
  read.number("tau", o.tau);
  read.choice("rule", kScoreRules, o.rule);
  read.number("gamma", o.gamma);
  read.number("weight", o.weight);
  read.number("factor", o.factor);
  read.number("spread", o.spread);
  read.number("spread_width", o.spread_width);
  read.number("anti_collapse", o.anti_collapse);
  read.number("h_max", o.h_max);
  read.number("rho", o.rho);
  read.choice("probes", kProbeRules, o.probes);
  read.integer("halo", o.halo);
  read.choice("context", kContexts, o.context);
  read.choice("adjoint", kAdjoints, o.adjoint);
  read.integer("every", o.every);
  read.integer("min_masked", o.min_masked);
  read.finish();
  return std::make_shared<BoE>(std::move(o));
}

}  // namespace

void register_influence(py::module_& m) {
  py::class_<Influence>(m, "Influence", "Token influence scores; see the C++ header influence.h.")
      .def_readonly("tis", &Influence::tis)
      .def_readonly("predicted_entropy", &Influence::predicted_entropy)
      .def_readonly("forward_rows", &Influence::forward_rows)
      .def_readonly("backward_rows", &Influence::backward_rows)
      .def_readonly("head_rows", &Influence::head_rows);

  m.def(
      "influence",
      [](const Denoiser& model, const std::vector<at::Tensor>& sequences,
         const std::vector<std::vector<int64_t>>& candidates,
         const std::vector<std::vector<int64_t>>& probes, std::vector<double> alpha, double tau,
         int64_t halo, const std::string& context, const std::string& adjoint,
         std::vector<int64_t> forbidden) {
        InfluenceOptions options;
        options.alpha = std::move(alpha);
        options.tau = tau;
        options.halo = halo;
        options.context = named(kContexts, "context", context);
        options.adjoint = named(kAdjoints, "adjoint", adjoint);
        options.forbidden = std::move(forbidden);
        options.poll = signal_poll();
        const py::gil_scoped_release unlocked;
        return influence(model, sequences, candidates, probes, options);
      },
      py::arg("model"), py::arg("sequences"), py::arg("candidates"), py::arg("probes"),
      py::arg("alpha"), py::arg("tau"), py::arg("halo"), py::arg("context"), py::arg("adjoint"),
      py::arg("forbidden"));

  m.def(
      "one_step_fall",
      [](const Denoiser& model, const std::vector<at::Tensor>& sequences,
         const std::vector<std::vector<int64_t>>& candidates,
         const std::vector<std::vector<int64_t>>& probes, const std::vector<int64_t>& forbidden) {
        const auto poll = signal_poll();
        const py::gil_scoped_release unlocked;
        return one_step_fall(model, sequences, candidates, probes, forbidden, poll).fall;
      },
      py::arg("model"), py::arg("sequences"), py::arg("candidates"), py::arg("probes"),
      py::arg("forbidden"));

  py::class_<BoE, Policy, py::smart_holder>(m, "BoE", kBoEDoc)
      .def(py::init(&make_boe), "Settings by name; those not given keep their defaults.")
      .def_static(
          "paper", [] { return std::make_shared<BoE>(BoEOptions::paper()); },
          "The settings of the paper: alpha = 1, exact context, most entropic probes.")
      .def_property_readonly("n_candidates",
                             [](const BoE& p) { return candidates_of(p.options()); })
      .def_property_readonly(
          "prefilter", [](const BoE& p) { return name_of(kPrefilters, p.options().prefilter); })
      .def_property_readonly("alpha", [](const BoE& p) { return p.options().alpha; })
      .def_property_readonly("tau", [](const BoE& p) { return p.options().tau; })
      .def_property_readonly("gamma", [](const BoE& p) { return p.options().gamma; })
      .def_property_readonly("anti_collapse",
                             [](const BoE& p) { return p.options().anti_collapse; })
      .def_property_readonly("h_max", [](const BoE& p) { return p.options().h_max; })
      .def_property_readonly("rho", [](const BoE& p) { return p.options().rho; })
      .def_property_readonly("probes",
                             [](const BoE& p) { return name_of(kProbeRules, p.options().probes); })
      .def_property_readonly("halo", [](const BoE& p) { return p.options().halo; })
      .def_property_readonly("context",
                             [](const BoE& p) { return name_of(kContexts, p.options().context); })
      .def_property_readonly("adjoint",
                             [](const BoE& p) { return name_of(kAdjoints, p.options().adjoint); })
      .def_property_readonly("every", [](const BoE& p) { return p.options().every; })
      .def_property_readonly("min_masked", [](const BoE& p) { return p.options().min_masked; })
      .def_property_readonly("rule",
                             [](const BoE& p) { return name_of(kScoreRules, p.options().rule); })
      .def_property_readonly("weight", [](const BoE& p) { return p.options().weight; })
      .def_property_readonly("draft",
                             [](const BoE& p) { return name_of(kDrafts, p.options().draft); })
      .def_property_readonly("spread", [](const BoE& p) { return p.options().spread; })
      .def_property_readonly("spread_width", [](const BoE& p) { return p.options().spread_width; })
      .def_property_readonly("factor", [](const BoE& p) { return p.options().factor; });
}

}  // namespace tabes::python
