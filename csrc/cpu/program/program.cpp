#include "program.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>

namespace fastmaml {
namespace {

std::unordered_map<std::string, Kernel>& kernels_by_name() {
  static std::unordered_map<std::string, Kernel> table;
  return table;
}

}  // namespace

const Kernel* find_kernel(const std::string& name) {
  const auto found = kernels_by_name().find(name);
  return found == kernels_by_name().end() ? nullptr : &found->second;
}

bool remember_kernel(const char* name, Kernel kernel) {
  if (kernel.run) kernels_by_name()[name] = kernel;
  return true;
}

namespace program {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

template <class T>
StableIValue handed(const T& x, bool optional) {
  return optional ? from(std::optional<T>(x)) : from(x);
}

StableIValue booleans(const std::vector<int64_t>& list) {
  StableListHandle handle;
  TORCH_ERROR_CODE_CHECK(torch_new_list_reserve_size(list.size(), &handle));
  for (const int64_t x : list) TORCH_ERROR_CODE_CHECK(torch_list_push_back(handle, from(x != 0)));
  return torch::stable::detail::from(handle);
}

// What stands for an argument; whoever is called takes it over.
StableIValue argument(const Argument& x, const Values& values) {
  using Type = Argument::Type;
  switch (x.type) {
    case Type::none: return from(std::nullopt);
    case Type::tensor: return from(known(values, x.value));
    case Type::tensor_or_none:
      return x.value < 0 ? from(std::nullopt) : from(OptionalTensor(known(values, x.value)));
    case Type::tensors: {
      std::vector<Tensor> tensors;
      tensors.reserve(x.list.size());
      for (const int64_t number : x.list) tensors.push_back(known(values, number));
      return from(tensors);
    }
    case Type::integer: return handed(x.integer, x.optional);
    case Type::number: return handed(x.number, x.optional);
    case Type::boolean: return handed(x.integer != 0, x.optional);
    case Type::integers: return handed(x.list, x.optional);
    case Type::booleans: return booleans(x.list);
    case Type::dtype: return handed(static_cast<ScalarType>(x.integer), x.optional);
    case Type::memory_format: return handed(static_cast<torch::headeronly::MemoryFormat>(x.integer), x.optional);
  }
  STD_TORCH_CHECK(false, "an argument of a program has no type");
}

// Through PyTorch's dispatcher.
void dispatch(const Call& call, Values& values) {
  const size_t results = call.list ? 1 : call.results.size();
  std::vector<StableIValue> stack(std::max(call.arguments.size(), results));
  for (size_t i = 0; i < call.arguments.size(); ++i) stack[i] = argument(call.arguments[i], values);
  const auto error =
      torch_call_dispatcher(call.name.c_str(), call.overload.c_str(), stack.data(), TORCH_ABI_VERSION);
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, call.name, " failed in a program");
  if (call.list) {
    const auto found = to<std::vector<Tensor>>(stack[0]);
    for (size_t i = 0; i < call.results.size(); ++i)
      if (call.results[i] >= 0) values[call.results[i]] = found.at(i);
    return;
  }
  for (size_t i = 0; i < results; ++i) {
    Tensor found = to<Tensor>(stack[i]);  // also where nobody needs it: it is ours to let go
    if (call.results[i] >= 0) values[call.results[i]] = std::move(found);
  }
}

void run_view(const View& view, Values& values) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      known(values, view.source).get(), static_cast<int64_t>(view.size.size()), view.size.data(),
      view.stride.data(), view.offset, &handle));
  values[view.result] = Tensor(handle);
}

void run_pointwise_step(const Pointwise& p, const Geometry& geometry, Values& values) {
  const Tensor& a = known(values, p.a);
  if (p.in_place) {
    values[p.result] = a;
  } else {
    const AtenTensorHandle there = allocations && allocations->places
                                       ? placed(*allocations, geometry.size, geometry.stride, shim_dtype(a))
                                       : nullptr;
    values[p.result] = there ? Tensor(there)
                             : empty_strided(geometry.size, geometry.stride, shim_dtype(a),
                                             aoti_torch_device_type_cpu(), 0);
  }
  with_scalar(a, [&](auto zero) {
    using S = decltype(zero);
    const S* b = p.b < 0 ? nullptr : static_cast<const S*>(known(values, p.b).const_data_ptr());
    run_pointwise<S>(p, static_cast<const S*>(a.const_data_ptr()), b, output<S>(*values[p.result]));
  });
}

// What the kernels of this thread allocate is these, for as long as this lives.
class Watching {
 public:
  explicit Watching(Allocations* of) { allocations = of; }
  ~Watching() { allocations = nullptr; }
  Watching(const Watching&) = delete;
  Watching& operator=(const Watching&) = delete;
};

// For each of the allocations of a call the result that lies there, or -1. The last one at an address
// counts: others before it are over.
std::vector<int64_t> results_among(const std::vector<const void*>& seen, const Call& call, const Values& values) {
  std::vector<int64_t> found(seen.size(), -1);
  for (const int64_t number : call.results) {
    if (number < 0) continue;
    const auto at = std::find(seen.rbegin(), seen.rend(), known(values, number).const_data_ptr());
    if (at != seen.rend()) found[seen.rend() - at - 1] = number;
  }
  return found;
}

void check(const Tensor& x, const Geometry& expected, int64_t number) {
  const bool same = x.is_cpu() && x.scalar_type() == expected.dtype && sizes_of(x) == expected.size &&
                    Sizes(x.strides().begin(), x.strides().end()) == expected.stride;
  STD_TORCH_CHECK(same, "value ", number, " of a program has shape ", shape_text(sizes_of(x)), " and dtype ",
                  toString(x.scalar_type()), ", not what it was made for: ", shape_text(expected.size), ", ",
                  toString(expected.dtype), ", or other strides");
}

struct Kept {
  std::mutex lock;
  std::unordered_map<int64_t, std::shared_ptr<Program>> programs;
  int64_t next = 0;
};

Kept& kept() {
  static Kept all;
  return all;
}

std::vector<Tensor> replay(int64_t number, std::vector<Tensor> given) { return find(number)->run(given); }

}  // namespace

std::vector<Tensor> Program::run(const std::vector<Tensor>& given) {
  STD_TORCH_CHECK(given.size() == inputs.size(), "a program takes ", inputs.size(), " tensors, not ",
                  given.size());
  Values now(values.size());
  for (size_t i = 0; i < given.size(); ++i) {
    check(given[i], values[inputs[i]], inputs[i]);
    now[inputs[i]] = given[i];
  }
  if (planned_) run_planned(now);
  else run_first(now);
  std::vector<Tensor> results;
  results.reserve(outputs.size());
  for (const int64_t number : outputs) results.push_back(known(now, number));
  return results;
}

void Program::one(const Step& step, Values& now) const {
  switch (step.type) {
    case Step::Type::call:
      if (step.call.kernel)
        step.call.kernel->run(step.call.arguments, step.call.results, now);
      else
        dispatch(step.call, now);
      break;
    case Step::Type::view: run_view(step.view, now); break;
    case Step::Type::pointwise: run_pointwise_step(step.pointwise, values[step.pointwise.result], now); break;
  }
}

// Looks at what every call gives, and at what its kernel allocates for that.
void Program::run_first(Values& now) {
  std::vector<std::vector<int64_t>> made(steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    Allocations seen;
    {
      const Watching watching(step.type == Step::Type::call && step.call.kernel ? &seen : nullptr);
      one(step, now);
    }
    if (step.type == Step::Type::call)
      for (const int64_t number : step.call.results)
        if (number >= 0) check(*now[number], values[number], number);
    if (step.type == Step::Type::call && step.call.kernel) made[i] = results_among(seen.seen, step.call, now);
    if (step.type == Step::Type::pointwise && !step.pointwise.in_place) made[i] = {step.pointwise.result};
    for (const int64_t number : step.over) now[number].reset();
  }
  {
    const std::lock_guard<std::mutex> lock(planning_);
    if (plan_) return;
    plan_ = std::make_unique<const MemoryPlan>(*this, made);
    planned_ = true;
  }
  trim_heap();  // of what was made before there was a plan
}

void Program::run_planned(Values& now) const {
  const Lease memory(plan_->bytes);
  for (size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    const MemoryPlan::Step& of = plan_->steps[i];
    Allocations places{&of.places, memory.floats(), memory.doubles(), 0, {}};
    {
      const Watching watching(of.places.empty() ? nullptr : &places);
      one(step, now);
    }
    for (const auto& [number, before] : of.results)
      now[number] = memory.settled(std::move(*now[number]), before);
    for (const int64_t number : step.over) now[number].reset();
  }
}

int64_t Program::memory() const { return planned_ ? plan_->bytes : -1; }

int64_t Program::peak() const {
  // Memory goes with the last of the values that lie in it.
  std::vector<int64_t> owner(values.size()), users(values.size(), 0);
  std::vector<bool> made(values.size(), false);
  for (size_t i = 0; i < owner.size(); ++i) owner[i] = static_cast<int64_t>(i);
  int64_t now = 0, most = 0;
  const auto begins = [&](int64_t value, int64_t of) {
    owner[value] = of;
    if (++users[of] == 1 && of == value) now += values[value].bytes, made[value] = true;
  };
  for (const Step& step : steps) {
    switch (step.type) {
      case Step::Type::call:
        most = std::max(most, now + step.call.inside);
        for (const int64_t number : step.call.results)
          if (number >= 0) begins(number, number);
        break;
      case Step::Type::view: begins(step.view.result, owner[step.view.source]); break;
      case Step::Type::pointwise: {
        const Pointwise& p = step.pointwise;
        begins(p.result, p.in_place ? owner[p.a] : p.result);
        break;
      }
    }
    most = std::max(most, now);
    for (const int64_t number : step.over) {
      const int64_t of = owner[number];
      if (--users[of] == 0 && made[of]) now -= values[of].bytes;
    }
  }
  return most;
}

std::shared_ptr<Program> find(int64_t number) {
  std::lock_guard<std::mutex> lock(kept().lock);
  const auto found = kept().programs.find(number);
  STD_TORCH_CHECK(found != kept().programs.end(), "there is no program ", number);
  return found->second;
}

int64_t keep(std::shared_ptr<Program> program) {
  std::lock_guard<std::mutex> lock(kept().lock);
  kept().programs[kept().next] = std::move(program);
  return kept().next++;
}

void drop(int64_t number) {
  int64_t most = 0;
  {
    std::lock_guard<std::mutex> lock(kept().lock);
    kept().programs.erase(number);
    for (const auto& [_, program] : kept().programs) most = std::max(most, program->memory());
  }
  keep_blocks_of(most);
}

}  // namespace program
}  // namespace fastmaml

// No op of ours: what it computes is what its program says.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmaml, m) {
  m.def("replay(int program, Tensor[] given) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CompositeExplicitAutograd, m) {
  m.impl("replay", TORCH_BOX(&fastmaml::program::replay));
}
