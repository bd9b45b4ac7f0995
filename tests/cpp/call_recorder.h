// A recorder for the CPU with the manners of a CUDA graph: it notes every operator that is called,
// and a replay calls them again on the same memory, with the host's numbers as they were. Reading a
// number while it records is an error, as is copying between devices. A replay spoils what the
// other graphs of the recorder have allocated, as graphs that share a pool may, and it fails
// where memory that it was recorded on is no longer held by anyone else.
#pragma once

#include "replay/graph.h"

namespace tabes {

// Makes models that are built while it lives replayable on the CPU. Products in panels, which the
// CPU alone has and no operator makes, are off meanwhile: they would not be noticed.
class CallRecorderScope {
 public:
  CallRecorderScope();
  ~CallRecorderScope();
  // Recordings made since; one that failed does not count.
  static int recordings();

 private:
  bool panels_;
};

}  // namespace tabes
