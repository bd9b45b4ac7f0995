// A model's passes by shape, recorded when a shape comes back and replayed from then on.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "batch/uploads.h"
#include "replay/graph.h"

namespace tabes {

class PassGraphs {
 public:
  using Tensors = std::vector<at::Tensor>;
  // Device work without a look at a number. It may run several times for one call, so running it
  // again on the same inputs must change nothing.
  using Work = std::function<Tensors(const Tensors& inputs)>;

  // Graphs kept at most; beyond, the one not used for longest goes.
  static constexpr size_t kMostGraphs = 128;

  explicit PassGraphs(at::Device device) : device_(device) {}

  // One user at a time, since graphs have one set of inputs. try_acquire() makes the current stream
  // wait for the one before; false: somebody has it.
  bool try_acquire();
  void release();

  // work(inputs), whose outputs nobody else holds. Everything that `work` depends on besides the
  // inputs' values must be in `shape`, or stay the same until forget(). The first time a shape is
  // seen it runs as it is. Where recording fails it does so for good, with a warning.
  Tensors run(const std::vector<int64_t>& shape, const Tensors& inputs, const Work& work);

  // Drops all graphs and their memory; waits for the device.
  void forget();

  int64_t recorded() const { return recorded_; }  // all in all
  int64_t replayed() const { return replayed_; }

 private:
  struct Entry {
    int64_t used = 0;       // when, by clock_; 0: never
    bool is_eager = false;  // could not be recorded
    // Freed from the last to the first: the graph uses all of it.
    Uploads uploads;
    Tensors inputs, outputs;
    std::unique_ptr<Graph> graph;

    void drop();  // all but what is known of the shape
  };

  // For all work on the device: a graph may be running.
  void wait() const;
  void record(Entry& entry, const Tensors& inputs, const Work& work);
  void make_room();

  at::Device device_;
  std::atomic<bool> is_taken_ = false;  // no mutex: a thread may ask again while it has it
  std::optional<c10::Event> last_use_;
  // Declared before the graphs that are made by it.
  std::unique_ptr<GraphRecorder> recorder_;
  std::map<std::vector<int64_t>, Entry> entries_;
  size_t graphs_ = 0;
  int64_t clock_ = 0, recorded_ = 0, replayed_ = 0;
};

}  // namespace tabes
