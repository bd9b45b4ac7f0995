#include "forked.h"

#include <ATen/Parallel.h>

#include <atomic>

#include "messages.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace tabes {
namespace {

// Of this process: what it has computed with, and what a parent of it had when it forked.
std::atomic<bool> used_threads{false}, used_gpu{false};
std::atomic<bool> lost_threads{false}, lost_gpu{false};

#if defined(__unix__) || defined(__APPLE__)
// Runs in the child, between fork() and what comes after it: no locks, no memory.
void in_child() {
  if (used_threads.exchange(false)) lost_threads = true;
  if (used_gpu.exchange(false)) lost_gpu = true;
}

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, in_child);
#endif

[[noreturn]] void lost(const char* what, const char* cure) {
  throw DeviceError(text("this process was forked from one that had computed ", what,
                         ", which a child of fork cannot go on with: start workers by \"spawn\" ",
                         "(multiprocessing.get_context(\"spawn\"))", cure));
}

}  // namespace

void enter(const at::Device& device) {
  if (device.is_cuda()) {
    if (lost_gpu) lost("on a GPU", "");
    used_gpu = true;
  }
  if (at::get_num_threads() == 1) return;
  if (lost_threads) {
    lost("in several threads",
         ", or compute in one thread: torch.set_num_threads(1), at::set_num_threads(1)");
  }
  used_threads = true;
}

}  // namespace tabes
