#include <pybind11/stl.h>

#include <cstring>

#include "python_policy.h"
#include "records.h"

namespace tabes::python {

namespace py = pybind11;

const char* name_of(Pace pace) {
  return pace == Pace::quota ? "quota" : pace == Pace::adaptive ? "adaptive" : "timed";
}

Pace pace_of(const std::string& name) {
  for (const Pace pace : {Pace::quota, Pace::adaptive, Pace::timed}) {
    if (name == name_of(pace)) return pace;
  }
  throw InputError("pace '" + name + "' is unknown; known are quota, adaptive and timed");
}

py::object call_with(const py::function& method, const StepContext& context) {
  const py::object object = py::cast(ContextView(context));
  struct Closer {
    ~Closer() { view.close(); }
    ContextView& view;
  } closer{object.cast<ContextView&>()};
  return method(object);
}

namespace {

thread_local Running* running = nullptr;

bool any_of(const py::handle& values, const std::function<bool(const Policy&)>& ask, bool nested) {
  for (const py::handle value : py::iter(values)) {
    if (py::isinstance<Policy>(value)) {
      if (ask(value.cast<const Policy&>())) return true;
    } else if (nested && (PyList_Check(value.ptr()) || PyTuple_Check(value.ptr()))) {
      if (any_of(value, ask, false)) return true;
    } else if (nested && PyDict_Check(value.ptr())) {
      if (any_of(value.attr("values")(), ask, false)) return true;
    }
  }
  return false;
}

}  // namespace

bool any_held(const py::object& self, const std::function<bool(const Policy&)>& ask) {
  if (!py::hasattr(self, "__dict__")) return false;
  // A copy: what is asked may set attributes.
  return any_of(py::list(self.attr("__dict__").attr("values")()), ask, true);
}

Running::Running(const Policy* policy, const char* method)
    : policy_(policy), method_(method), outer_(running) {
  running = this;
}

Running::~Running() {
  running = outer_;
}

Running* Running::of(const Policy* policy, const char* method) {
  for (Running* r = running; r; r = r->outer_) {
    if (r->policy_ == policy && std::strcmp(r->method_, method) == 0) return r;
  }
  return nullptr;
}

namespace {

void register_context(py::module_& m) {
  py::class_<ContextView> view(
      m, "StepContext",
      "What a policy sees of one step; valid during decide() and score() only.\n\n"
      "Dimensions: B sequences that are still being decoded, R their tokens one after another (a "
      "row is\na number below R), n rows that may be revealed.");
  def_protocol(view);
  // One attribute of the C++ struct.
  const auto read = [&](const char* name, auto get, const char* help) {
    view.def_property_readonly(name, [get](const ContextView& c) { return get(c.get()); }, help);
  };
  read(
      "tokens", [](const StepContext& c) { return c.batch.tokens; },
      "int64 [R]: the sequences as they stand, on the model's device.");
  read(
      "cu_seqlens", [](const StepContext& c) { return c.batch.cu_seqlens; },
      "B + 1 numbers: sequence b has the rows cu_seqlens[b] to cu_seqlens[b + 1] - 1.");
  read(
      "rows", [](const StepContext& c) { return c.eligible.rows; },
      "int64 [n]: the rows that may be revealed, increasing, on the model's device.");
  read(
      "cu_rows", [](const StepContext& c) { return c.eligible.cu_rows; },
      "B + 1 numbers: entries cu_rows[b] to cu_rows[b + 1] - 1 of `rows` are sequence b's.");
  read(
      "predictions", [](const StepContext& c) { return c.predictions; },
      "`Predictions` at `rows`.");
  read(
      "features", [](const StepContext& c) { return c.features; },
      "[n, F]: the model's last hidden states at `rows`, of which `project` makes logits.");
  read(
      "forbidden", [](const StepContext& c) { return c.forbidden; },
      "int64 [f]: token ids of probability 0, the mask among them.");
  read(
      "waiting", [](const StepContext& c) { return c.waiting.rows; },
      "int64 [w]: masked rows of later blocks; empty unless wants_waiting() says True.");
  read(
      "cu_waiting", [](const StepContext& c) { return c.waiting.cu_rows; },
      "B + 1 numbers: which of `waiting` are whose, as in cu_rows.");
  read(
      "waiting_entropy", [](const StepContext& c) { return c.waiting_entropy; },
      "[w], nats: entropies of the predictions at `waiting`.");
  read(
      "has_context", [](const StepContext& c) { return c.context != nullptr; },
      "Whether the pass's keys and values are there, for a built-in policy that is called with "
      "this\nstep: where wants_context() says True and the model keeps them.");
  read(
      "revealed", [](const StepContext& c) { return c.revealed.rows; },
      "int64 [m]: rows of the current blocks that earlier steps revealed; pace \"timed\" only.");
  read(
      "cu_revealed", [](const StepContext& c) { return c.revealed.cu_rows; },
      "B + 1 numbers: which of `revealed` are whose, as in cu_rows.");
  read(
      "revealed_confidence", [](const StepContext& c) { return c.revealed_confidence; },
      "float64 [m]: the probability of each of `revealed` when it was revealed.");
  read(
      "place", [](const StepContext& c) { return c.place; },
      "B numbers: which of the caller's sequences each is.");
  read(
      "sequence", [](const StepContext& c) { return c.sequence; },
      "B numbers: by which each one's draws are keyed (`sequence_ids`).");
  read("step", [](const StepContext& c) { return c.step; }, "B numbers: steps that each has done.");
  read(
      "steps", [](const StepContext& c) { return c.steps; },
      "B numbers: steps that each gets, at most; no bound under pace \"adaptive\".");
  read(
      "block_step", [](const StepContext& c) { return c.block_step; },
      "B numbers: steps that each has done in its current block.");
  read(
      "block_steps", [](const StepContext& c) { return c.block_steps; },
      "B numbers: steps that each gets in its current block.");
  read(
      "first", [](const StepContext& c) { return c.first; },
      "B positions: each one's first that was masked at the start.");
  read(
      "quota", [](const StepContext& c) { return c.quota; },
      "B numbers: rows that the schedule reveals of each in this step.");
  read("seed", [](const StepContext& c) { return c.seed; }, "The seed of all draws.");
  view.def(
          "look_ahead",
          [](const ContextView& c, const std::vector<std::pair<size_t, std::vector<int64_t>>>& w) {
            const StepContext& context = c.get();
            std::vector<Ahead> wanted;
            for (const auto& [sequence, reveal] : w) wanted.push_back({sequence, reveal});
            const py::gil_scoped_release unlocked;
            return context.look_ahead(wanted);
          },
          py::arg("wanted"),
          "Predictions where eligible rows (their numbers, in order) of a sequence were revealed,\n"
          "at the eligible rows that stay masked; one pass over all that is wanted.")
      .def(
          "project",
          [](const ContextView& c, const at::Tensor& features) {
            const StepContext& context = c.get();
            const py::gil_scoped_release unlocked;
            return context.model.project(features);
          },
          py::arg("features"),
          "Logits [k, V] in the model's dtype of features [k, F], which count as rows of the head.")
      .def(
          "count",
          [](const ContextView& c, int64_t forward, int64_t backward, int64_t head) {
            if (forward < 0 || backward < 0 || head < 0) {
              throw InputError("rows are counted up: give numbers of at least 0");
            }
            Cost& cost = c.get().cost;
            cost.forward_rows += forward;
            cost.backward_rows += backward;
            cost.head_rows += head;
          },
          py::kw_only(), py::arg("forward_rows") = 0, py::arg("backward_rows") = 0,
          py::arg("head_rows") = 0,
          "Adds rows to what the step has cost, computed otherwise than through this context and "
          "the\npolicies that it is passed to; those count by themselves.")
      .def("__repr__", [](const ContextView& c) -> std::string {
        if (!c.open()) return "StepContext(closed)";
        return "StepContext(" + std::to_string(c.get().batch.size()) + " sequences, " +
               std::to_string(c.get().eligible.count()) + " rows to choose from)";
      });
}

// Every policy by its settings, as text and otherwise.
template <typename Class>
void def_settings(Class& policy) {
  policy.def("name", &Policy::name, "By which the policy is made and recorded.")
      .def(
          "settings",
          [](const Policy& policy) {
            py::dict settings;
            for (const auto& [name, value] : policy.settings()) {
              settings[py::str(name)] = setting_object(value);
            }
            return settings;
          },
          "Every setting by name, defaults among them. Trace files keep them.")
      .def(
          "notation", [](const Policy& policy) { return notation(policy); },
          "``name(setting=value, ...)`` with every setting; `tabes.make_policy` reads it.")
      .def("__reduce__", [](const py::object& policy) {
        return py::module_::import("tabes.policies").attr("reduced")(policy);
      });
  // Python classes compare, hash and show themselves as Python objects do.
  const auto built_in = [](const Policy& p) {
    return dynamic_cast<const py::trampoline_self_life_support*>(&p) == nullptr;
  };
  policy
      .def("__eq__",
           [built_in](const py::object& self, const py::object& other) -> py::object {
             if (self.is(other)) return py::bool_(true);
             if (!py::isinstance<Policy>(other))
               return py::reinterpret_borrow<py::object>(Py_NotImplemented);
             const auto &a = self.cast<const Policy&>(), &b = other.cast<const Policy&>();
             if (!built_in(a) || !built_in(b))
               return py::reinterpret_borrow<py::object>(Py_NotImplemented);
             return py::bool_(a.name() == b.name() && a.settings() == b.settings());
           })
      .def("__hash__",
           [built_in](const Policy& policy) {
             return built_in(policy)
                        ? py::hash(py::str(notation(policy)))
                        : static_cast<py::ssize_t>(std::hash<const Policy*>()(&policy));
           })
      .def("__repr__", [built_in](const py::object& self) {
        const auto& policy = self.cast<const Policy&>();
        if (built_in(policy)) return notation(policy, false);
        const auto type = py::type::of(self).attr("__qualname__").cast<std::string>();
        return "<" + type + ": " + notation(policy, false) + ">";
      });
}

}  // namespace

void register_policy(py::module_& m) {
  py::class_<Predictions> predictions(m, "Predictions",
                                      "What the model predicts at n rows, on its device.\n\n"
                                      "Probabilities are those at temperature 1, the mask and "
                                      "forbidden tokens left out.");
  def_record(predictions,
             Field{"token", &Predictions::token, "int64 [n]: the token that would be written."},
             Field{"confidence", &Predictions::confidence, "[n]: its probability."},
             Field{"max_prob", &Predictions::max_prob, "[n]: the largest probability."},
             Field{"margin", &Predictions::margin,
                   "[n]: the largest less the second largest probability."},
             Field{"entropy", &Predictions::entropy, "[n], nats: entropy of the distribution."});
  predictions.def("__repr__", [](const Predictions& p) {
    return "Predictions(" + std::to_string(p.token.numel()) + " rows)";
  });

  register_context(m);

  py::class_<Decision> decision(
      m, "Decision",
      "What a policy says of the n eligible rows of a step.\n\n"
      "Args:\n"
      "    score: [n]; within a sequence the highest are revealed first.\n"
      "    count: how many rows of each sequence are revealed, for the paces \"adaptive\" and "
      "\"timed\".\n"
      "    remask: rows among `StepContext.revealed`, in order, to be masked again (\"timed\" "
      "only).\n"
      "    influence: [n], nats: what revealing each row does to the entropy of the probes; NaN "
      "where\n        it was not computed. It goes into the records.\n"
      "    probes: the rows whose entropy that is, increasing.");
  decision.def(
      py::init([](at::Tensor score, std::vector<int64_t> count, std::vector<int64_t> remask,
                  std::optional<at::Tensor> influence, std::vector<int64_t> probes) {
        Decision d(std::move(score));
        d.count = std::move(count);
        d.remask = std::move(remask);
        if (influence) d.influence = std::move(*influence);
        d.probes = std::move(probes);
        return d;
      }),
      py::arg("score"), py::arg("count") = std::vector<int64_t>{},
      py::arg("remask") = std::vector<int64_t>{}, py::arg("influence") = py::none(),
      py::arg("probes") = std::vector<int64_t>{});
  def_record(
      decision,
      Field{"score", &Decision::score, "[n]: within a sequence the highest are revealed first."},
      Field{"count", &Decision::count,
            "B numbers: rows revealed of each sequence; empty under pace \"quota\"."},
      Field{"remask", &Decision::remask, "Rows that are masked again, increasing."},
      Field{"influence", &Decision::influence,
            "[n], nats, NaN where it was not computed; None: of no row."},
      Field{"probes", &Decision::probes, "Rows whose entropy the influence is on, increasing."});
  decision.def("__repr__", [](const Decision& d) {
    std::string text =
        "Decision(" + std::to_string(d.score.defined() ? d.score.numel() : 0) + " scores";
    if (!d.count.empty()) text += ", count=" + py::repr(py::cast(d.count)).cast<std::string>();
    if (!d.remask.empty()) text += ", " + std::to_string(d.remask.size()) + " masked again";
    return text + ")";
  });

  py::class_<Policy, PythonPolicy<Policy>, py::smart_holder> policy(
      m, "Policy",
      "Orders the masked positions.\n\n"
      "Subclasses define name() and score(context) or decide(context), and what else they want to. "
      "One\nthat calls another policy passes on its `StepContext`: what that one computes is "
      "counted.");
  policy.def(py::init<>());
  def_settings(policy);
  policy
      .def(
          "pace", [](const Policy& policy) { return name_of(policy.pace()); },
          "Who says how many rows a step reveals: \"quota\" (the schedule), \"adaptive\" (the "
          "policy, at\nleast one) or \"timed\" (the policy, which may mask again; all steps are "
          "taken).")
      .def("wants_waiting", &Policy::wants_waiting,
           "Whether decide() will want `StepContext.waiting`. By default: whether a policy does "
           "that\nis an attribute of this one, or in a list, tuple or dict that is.")
      .def("wants_context", &Policy::wants_context, py::arg("step"),
           "Whether decide() will want the keys and values of the step's pass, for sequences that "
           "have\ndone `step` steps: `tabes.BoE` with context=\"frozen\" does. By default as for "
           "wants_waiting().")
      .def(
          "decide",
          [](const Policy& policy, const ContextView& view) {
            const StepContext& context = view.get();
            const py::gil_scoped_release unlocked;
            return policy.decide(context);
          },
          py::arg("context"), "What this policy says of the step: a `Decision`.")
      .def(
          "score",
          [](const Policy& policy, const ContextView& view) {
            const StepContext& context = view.get();
            const py::gil_scoped_release unlocked;
            return policy.decide(context).score;
          },
          py::arg("context"),
          "Scores [n] of the eligible rows: within a sequence the highest are revealed first.");

  m.def(
      "make_policy",
      [](const std::string& notation, const std::string& text, const py::dict& values) {
        const PolicySettings settings = policy_settings(values);
        return std::const_pointer_cast<Policy>(make_policy(notation, text, settings));
      },
      py::arg("notation"), py::arg("text") = "", py::arg("settings") = py::dict(),
      "A policy from its notation, with more settings as such a text and by name.");
  m.def("policy_names", &policy_names, "The names that `make_policy` knows.");
}

}  // namespace tabes::python
