// Recorded device work: on CUDA, graphs. What records is known by device type, so that a build
// without CUDA has none and a test can bring its own.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace tabes {

// Work that can be repeated without the host: the same kernels on the same memory.
class Graph {
 public:
  virtual ~Graph() = default;
  // On the current stream; does not wait.
  virtual void replay() = 0;
};

// All graphs of a recorder share memory: what one leaves behind in memory that it allocated holds
// until the next one is replayed. They are replayed on one stream at a time.
class GraphRecorder {
 public:
  virtual ~GraphRecorder() = default;
  // Runs `work` twice: to warm up, work(false), and to be recorded, work(true), which need not
  // compute anything. Waits for the device. Throws what `work` throws and c10::Error if the device
  // refuses; nothing has been recorded then.
  virtual std::unique_ptr<Graph> record(const std::function<void(bool recording)>& work) = 0;
};

using MakeRecorder = std::unique_ptr<GraphRecorder> (*)(c10::Device);

// While a library or a program is loaded.
bool register_recorder(c10::DeviceType type, MakeRecorder make);

// Null where nothing records.
MakeRecorder recorder_for(c10::DeviceType type);

}  // namespace tabes
