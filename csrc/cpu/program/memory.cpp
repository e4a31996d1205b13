#include "memory.h"

#include <algorithm>
#include <mutex>

#include "program.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace fastmaml::program {
namespace {

constexpr int64_t kLine = 64;  // bytes; all values begin at such a multiple

struct Value {
  int64_t number = 0, bytes = 0, begin = 0, end = 0, offset = 0;  // its steps, the last one included
};

// Whether a call may look at more than its tensors: what it is given is then what PyTorch itself
// allocated, at the beginning of a storage. So are Python's steps, which may be anybody's.
bool looks_beyond(const Call& call) {
  return !call.kernel && (call.name.rfind("aten::", 0) != 0 || call.name.rfind("aten::as_strided", 0) == 0);
}

std::vector<int64_t> given(const Call& call) {
  std::vector<int64_t> found;
  for (const Argument& x : call.arguments) {
    if (x.type == Argument::Type::tensors) found.insert(found.end(), x.list.begin(), x.list.end());
    if (x.value >= 0) found.push_back(x.value);
  }
  return found;
}

// The steps during which each owner's memory is needed; -1 for those that have no place in a block.
std::vector<Value> spans(const Program& program) {
  const size_t count = program.values.size();
  std::vector<int64_t> users(count, 0);
  std::vector<bool> there(count, false);  // what only Python sees, within a call back, never is
  std::vector<Value> found(count);
  for (Value& value : found) value.begin = -1;
  const auto owner = [&](int64_t number) { return program.values[number].owner; };
  const auto last = static_cast<int64_t>(program.steps.size()) - 1;
  for (int64_t i = 0; i <= last; ++i) {
    const Step& step = program.steps[i];
    const auto begins = [&](int64_t number) {
      const int64_t of = owner(number);
      ++users[of], there[number] = true;
      if (of == number) found[of].begin = i, found[of].end = last;
    };
    if (step.type == Step::Type::call)
      for (const int64_t number : step.call.results)
        if (number >= 0) begins(number);
    if (step.type == Step::Type::view) begins(step.view.result);
    if (step.type == Step::Type::pointwise) begins(step.pointwise.result);
    for (const int64_t number : step.over)
      if (there[number] && --users[owner(number)] == 0) found[owner(number)].end = i;
  }
  for (const int64_t number : program.outputs) found[owner(number)].begin = -1;
  for (const Step& step : program.steps)
    if (step.type == Step::Type::call && looks_beyond(step.call))
      for (const int64_t number : given(step.call)) found[owner(number)].begin = -1;
  for (size_t i = 0; i < count; ++i) {
    found[i].number = static_cast<int64_t>(i);
    found[i].bytes = (program.values[i].bytes + kLine - 1) / kLine * kLine;
  }
  return found;
}

// Large ones first, each where the least room is left among those of its time.
int64_t arrange(std::vector<Value*>& values) {
  std::stable_sort(values.begin(), values.end(),
                   [](const Value* a, const Value* b) { return a->bytes > b->bytes; });
  std::vector<const Value*> there;  // by offset
  int64_t bytes = 0;
  for (Value* value : values) {
    int64_t best = -1, least = 0, free_from = 0;
    for (const Value* other : there) {
      if (other->end < value->begin || value->end < other->begin) continue;
      const int64_t room = other->offset - free_from;
      if (room >= value->bytes && (best < 0 || room < least)) best = free_from, least = room;
      free_from = std::max(free_from, other->offset + other->bytes);
    }
    value->offset = best < 0 ? free_from : best;
    bytes = std::max(bytes, value->offset + value->bytes);
    const auto at = std::upper_bound(there.begin(), there.end(), value,
                                     [](const Value* a, const Value* b) { return a->offset < b->offset; });
    there.insert(at, value);
  }
  return bytes;
}

struct Pool {
  std::mutex lock;
  std::vector<Lease::Block> blocks;  // small ones first
  int64_t most = 0;                  // bytes that a program needs, of those that ran and are not gone
};

// Never destroyed: tensors are not to be let go of when PyTorch's own statics are gone.
Pool& pool() {
  static Pool& all = *new Pool;
  return all;
}

Lease::Block make_block(int64_t bytes) {
  const int64_t one = 1, floats = std::max<int64_t>(bytes / 4, 1), doubles = bytes / 8;
  Lease::Block block;
  block.bytes = bytes;
  block.floats = empty_strided({floats}, {one}, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      block.floats.mutable_data_ptr(), 1, &doubles, &one, 0, aoti_torch_dtype_float64(),
      aoti_torch_device_type_cpu(), 0, &handle));
  block.doubles = Tensor(handle);
  return block;
}

}  // namespace

MemoryPlan::MemoryPlan(const Program& program, const std::vector<std::vector<int64_t>>& made)
    : steps(program.steps.size()) {
  std::vector<Value> values = spans(program);
  std::vector<Value*> placed;
  const auto fits = [&](int64_t number) {
    const ScalarType dtype = program.values[number].dtype;
    const bool floating = dtype == ScalarType::Float || dtype == ScalarType::Double;
    return floating && values[number].bytes > 0 && values[number].begin >= 0;
  };
  for (const auto& step : made)
    for (const int64_t number : step)
      if (number >= 0 && fits(number)) placed.push_back(&values[number]);
  bytes = arrange(placed);
  for (size_t i = 0; i < made.size(); ++i)
    for (const int64_t number : made[i]) {
      Place& place = steps[i].places.emplace_back();
      if (number < 0 || !fits(number)) continue;
      const bool wide = program.values[number].dtype == ScalarType::Double;
      place.offset = values[number].offset / (wide ? 8 : 4);
      place.elements = program.values[number].bytes / (wide ? 8 : 4);
      place.dtype = wide ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
      steps[i].results.emplace_back(number, values[number].offset);
    }
  for (Step& step : steps)
    if (step.results.empty()) step.places.clear();
}

Lease::Lease(int64_t bytes) {
  {
    const std::lock_guard<std::mutex> lock(pool().lock);
    pool().most = std::max(pool().most, bytes);
    auto& blocks = pool().blocks;
    auto fitting = std::find_if(blocks.begin(), blocks.end(), [&](const Block& b) { return b.bytes >= bytes; });
    const bool fits = fitting != blocks.end();
    if (fits) block_ = std::move(*fitting);
    if (fits) blocks.erase(fitting);
    else if (!blocks.empty()) blocks.pop_back();  // a larger one takes its place
  }
  if (!block_.floats.defined() || block_.bytes < bytes) block_ = make_block(bytes);
}

Lease::~Lease() {
  const std::lock_guard<std::mutex> lock(pool().lock);
  if (block_.bytes > pool().most) return;  // the program is gone
  auto& blocks = pool().blocks;
  const auto at = std::upper_bound(blocks.begin(), blocks.end(), block_,
                                   [](const Block& a, const Block& b) { return a.bytes < b.bytes; });
  blocks.insert(at, std::move(block_));
}

Tensor Lease::settled(Tensor x, int64_t before) const {
  const auto* base = static_cast<const char*>(block_.floats.const_data_ptr());
  const auto* data = static_cast<const char*>(x.const_data_ptr());
  if (data == base + before || data < base || data >= base + block_.bytes) return x;
  Tensor copy = empty_strided(sizes_of(x), Sizes(x.strides().begin(), x.strides().end()),
                              x.scalar_type() == ScalarType::Double ? aoti_torch_dtype_float64()
                                                                    : aoti_torch_dtype_float32(),
                              aoti_torch_device_type_cpu(), 0);
  stable::copy_(copy, x);
  return copy;
}

void keep_blocks_of(int64_t most_bytes) {
  const std::lock_guard<std::mutex> lock(pool().lock);
  pool().most = most_bytes;
  auto& blocks = pool().blocks;
  std::erase_if(blocks, [&](const Lease::Block& b) { return b.bytes > most_bytes; });
}

int64_t idle_blocks() {
  const std::lock_guard<std::mutex> lock(pool().lock);
  int64_t bytes = 0;
  for (const Lease::Block& block : pool().blocks) bytes += block.bytes;
  return bytes;
}

void drop_idle_blocks() {
  std::vector<Lease::Block> gone;
  const std::lock_guard<std::mutex> lock(pool().lock);
  gone.swap(pool().blocks);
}

void trim_heap() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace fastmaml::program
