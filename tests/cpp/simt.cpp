#include "ops/cuda/simt.h"

#include <ucontext.h>

#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "ops/cuda/number.h"

namespace tabes::simt {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 << 10;

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  Here here;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  const int64_t* waits_for = nullptr;  // runnable once this is no longer `seen`
  int64_t seen = 0;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
};

// Threads that meet, and what they hand over. Two sets of slots, since a fast thread may come to
// the next meeting before a slow one has read what it was handed at this one.
struct Meeting {
  int size = 0, arrived = 0;
  int64_t round = 0;
  struct Slot {
    uint64_t word[8];
  };
  Slot slots[2][kWarp];
};

struct Running {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting block;
  ucontext_t scheduler;
  Fiber* now = nullptr;
  const std::function<void(char*)>* body = nullptr;
  char* shared = nullptr;
  Schedule schedule;
};
thread_local Running* running = nullptr;

void meet(Meeting& meeting) {
  Fiber& fiber = *running->now;
  const int64_t round = meeting.round;
  if (++meeting.arrived == meeting.size) {
    meeting.arrived = 0;
    ++meeting.round;
    return;
  }
  fiber.waits_for = &meeting.round;
  fiber.seen = round;
  swapcontext(&fiber.context, &running->scheduler);
}

// Hands `mine` to the warp; returns everybody's.
const Meeting::Slot* exchange(const Meeting::Slot& mine) {
  const int thread = running->now->here.thread;
  Meeting& warp = running->warps[thread / kWarp];
  Meeting::Slot* slots = warp.slots[warp.round % 2];
  slots[thread % kWarp] = mine;
  meet(warp);
  return slots;
}

void land(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

void enter() {
  Fiber& fiber = *running->now;
  (*running->body)(running->shared);
  fiber.done = true;
  swapcontext(&fiber.context, &running->scheduler);
}

void run_block(Running& state) {
  for (Fiber& fiber : state.fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    fiber.done = false;
    fiber.waits_for = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  const int threads = static_cast<int>(state.fibers.size());
  int left = threads;
  // Lets thread number i of the order go on, if it can.
  const auto advance = [&](int i) {
    Fiber& fiber = state.fibers[state.schedule.backwards ? threads - 1 - i : i];
    if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.seen)) return false;
    fiber.waits_for = nullptr;
    state.now = &fiber;
    swapcontext(&state.scheduler, &fiber.context);
    left -= fiber.done;
    return true;
  };
  // A warp runs until the block's barrier stops all of it, so that it gets as far ahead of the
  // others as it can: what no barrier keeps apart then happens in the wrong order.
  while (left > 0) {
    bool moved = false;
    for (int first = 0; first < threads; first += kWarp) {
      for (bool again = true; again;) {
        again = false;
        for (int i = first; i < first + kWarp; ++i) again |= advance(i);
        moved |= again;
      }
    }
    if (!moved) throw std::logic_error("the block's threads wait for one another forever");
  }
  for (Fiber& fiber : state.fibers) {
    if (!fiber.groups.empty() || !fiber.open.empty()) {
      throw std::logic_error("a thread ended with copies under way");
    }
  }
}

}  // namespace

const Here& here() {
  return running->now->here;
}
void sync_block() {
  meet(running->block);
}
void sync_warp() {
  meet(running->warps[here().thread / kWarp]);
}

uint32_t shuffle(uint32_t value, int lane) {
  return static_cast<uint32_t>(exchange({{value}})[lane].word[0]);
}

void copy_async(void* to, const void* from, bool valid) {
  // The device faults here, and its context with it.
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
    throw std::logic_error("an asynchronous copy of 16 bytes is not aligned to them");
  }
  const Copy copy{to, from, valid};
  if (!running->schedule.late_copies) land(copy);
  running->now->open.push_back(copy);
}

void commit_copies() {
  running->now->groups.push_back(std::move(running->now->open));
  running->now->open.clear();
}

void wait_copies(int left) {
  auto& groups = running->now->groups;
  while (static_cast<int>(groups.size()) > left) {
    if (running->schedule.late_copies) {
      for (const Copy& copy : groups.front()) land(copy);
    }
    groups.erase(groups.begin());
  }
}

void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  const Meeting::Slot* slots = exchange({{reinterpret_cast<uint64_t>(row)}});
  const int lane = here().thread % kWarp, major = lane / 4, minor = lane % 4 * 2;
  for (int m = 0; m < 4; ++m) {
    const auto number = [&](int i, int j) {
      return uint32_t{reinterpret_cast<const uint16_t*>(slots[8 * m + i].word[0])[j]};
    };
    r[m] = transposed ? number(minor, major) | number(minor + 1, major) << 16
                      : number(major, minor) | number(major, minor + 1) << 16;
  }
}

void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool bfloat16) {
  const Meeting::Slot* slots = exchange({{a[0], a[1], a[2], a[3], b0, b1}});
  const auto part = [&](int lane, int word, int k) {
    const auto bits = static_cast<uint16_t>(slots[lane].word[word] >> (k % 2 * 16));
    return bfloat16 ? gpu::to_float(gpu::BFloat16{bits}) : gpu::to_float(gpu::Half{bits});
  };
  const int lane = here().thread % kWarp;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      sum += part(row * 4 + k % 8 / 2, i / 2 + k / 8 * 2, k) *
             part(column * 4 + k % 8 / 2, 4 + k / 8, k);
    }
    c[i] += sum;
  }
}

void run(Grid grid, int threads, int64_t shared_bytes, const std::function<void(char*)>& body) {
  Running state;
  state.fibers.resize(threads);
  state.warps.resize(threads / kWarp);
  for (Meeting& warp : state.warps) warp.size = kWarp;
  state.block.size = threads;
  state.body = &body;
  state.schedule = schedule;
  for (Fiber& fiber : state.fibers) fiber.stack.reset(new char[kStack]);
  // Aligned as the hardware has it; of the exact size, so that a memory checker sees its end.
  std::unique_ptr<float[]> shared;
  Running* outer = running;
  running = &state;
  for (int z = 0; z < grid.z; ++z) {
    for (int y = 0; y < grid.y; ++y) {
      for (int x = 0; x < grid.x; ++x) {
        const size_t words = (shared_bytes + 3) / 4;
        shared.reset(new (std::align_val_t{128}) float[words]);
        std::fill_n(shared.get(), words, std::numeric_limits<float>::quiet_NaN());
        state.shared = reinterpret_cast<char*>(shared.get());
        for (int t = 0; t < threads; ++t) state.fibers[t].here = {t, threads, {x, y, z}};
        run_block(state);
        ::operator delete[](shared.release(), std::align_val_t{128});
      }
    }
  }
  running = outer;
}

}  // namespace tabes::simt
