// Programs from Python: lists and tuples become steps, and every number of a value is checked here.
#include "program_bind.h"

#include <pybind11/stl.h>

#include <memory>

#include "cpu/program/program.h"

namespace py = pybind11;

namespace fastmaml::program {
namespace {

using Type = Argument::Type;

Argument argument(const py::tuple& given) {
  Argument x;
  const auto type = given[0].cast<int64_t>();
  STD_TORCH_CHECK(type >= 0 && type <= static_cast<int64_t>(Type::memory_format), "an argument of type ", type);
  x.type = static_cast<Type>(type);
  x.optional = given[1].cast<bool>();
  switch (x.type) {
    case Type::none: break;
    case Type::tensor:
    case Type::tensor_or_none: x.value = given[2].cast<int64_t>(); break;
    case Type::number: x.number = given[2].cast<double>(); break;
    case Type::boolean: x.integer = given[2].cast<bool>(); break;
    case Type::integer:
    case Type::dtype:
    case Type::memory_format: x.integer = given[2].cast<int64_t>(); break;
    default: x.list = given[2].cast<std::vector<int64_t>>();
  }
  return x;
}

Call call(const py::tuple& given) {
  Call x;
  x.name = given[1].cast<std::string>();
  if (given[2].is_none()) {
    x.kernel = find_kernel(x.name);
    STD_TORCH_CHECK(x.kernel, "a program calls ", x.name, ", which is no kernel");
  } else {
    x.overload = given[2].cast<std::string>();
  }
  for (const auto& each : given[3]) x.arguments.push_back(argument(each.cast<py::tuple>()));
  x.results = given[4].cast<std::vector<int64_t>>();
  x.list = given[5].cast<bool>();
  x.inside = given[6].cast<int64_t>();
  const bool fits = !x.kernel || x.kernel->fits(x.arguments, x.results.size(), x.list);
  STD_TORCH_CHECK(fits, "a program calls ", x.name, " with other arguments or results than it has");
  return x;
}

View view(const py::tuple& given) {
  View x;
  x.result = given[1].cast<int64_t>();
  x.source = given[2].cast<int64_t>();
  x.size = given[3].cast<Sizes>();
  x.stride = given[4].cast<Sizes>();
  x.offset = given[5].cast<int64_t>();
  return x;
}

Pointwise pointwise(const py::tuple& given) {
  Pointwise x;
  const auto kind = given[1].cast<int64_t>();
  STD_TORCH_CHECK(kind >= 0 && kind < Pointwise::kKinds, "a pointwise step of kind ", kind);
  x.kind = static_cast<Pointwise::Kind>(kind);
  x.a = given[2].cast<int64_t>();
  x.b = given[3].cast<int64_t>();
  x.number = given[4].cast<double>();
  x.result = given[5].cast<int64_t>();
  x.in_place = given[6].cast<bool>();
  x.size = given[7].cast<Sizes>();
  x.a_step = given[8].cast<Sizes>();
  x.b_step = given[9].cast<Sizes>();
  x.out_step = given[10].cast<Sizes>();
  return x;
}

Step step(const py::tuple& given) {
  Step x;
  const auto type = given[0].cast<std::string>();
  if (type == "call") {
    x.type = Step::Type::call;
    x.call = call(given);
  } else if (type == "view") {
    x.type = Step::Type::view;
    x.view = view(given);
  } else {
    x.type = Step::Type::pointwise;
    x.pointwise = pointwise(given);
  }
  x.over = given[given.size() - 1].cast<std::vector<int64_t>>();
  return x;
}

// Every number of a value is one, and loops stay within the values' memory.
class Check {
 public:
  explicit Check(const Program& program) : values_(program.values) {
    for (const Geometry& value : program.values) known(value.owner);
    for (const int64_t number : program.inputs) known(number);
    for (const int64_t number : program.outputs) known(number);
    for (const Step& step : program.steps) {
      for (const int64_t number : step.over) known(number);
      if (step.type == Step::Type::call) of(step.call);
      if (step.type == Step::Type::view) known(step.view.source), known(step.view.result);
      if (step.type == Step::Type::pointwise) of(step.pointwise);
    }
  }

 private:
  void known(int64_t number) const {
    STD_TORCH_CHECK(number >= 0 && number < static_cast<int64_t>(values_.size()), "a program has no value ",
                    number);
  }

  void of(const Call& call) const {
    for (const Argument& x : call.arguments) {
      if (x.type == Type::tensor || (x.type == Type::tensor_or_none && x.value >= 0)) known(x.value);
      if (x.type == Type::tensors)
        for (const int64_t number : x.list) known(number);
    }
    for (const int64_t number : call.results)
      if (number >= 0) known(number);
  }

  void of(const Pointwise& p) const {
    known(p.a), known(p.result);
    if (p.b >= 0) known(p.b);
    const size_t rank = p.size.size();
    const bool ranks = p.a_step.size() == rank && p.out_step.size() == rank && p.b_step.size() == rank;
    STD_TORCH_CHECK(ranks, "the loops of a pointwise step have ", rank, " sizes and other numbers of steps");
    within(p, p.a, p.a_step);
    within(p, p.result, p.out_step);
    if (p.b >= 0) within(p, p.b, p.b_step);
    const ScalarType dtype = values_[p.a].dtype;
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "a pointwise step of dtype ",
                    toString(dtype));
    const bool same = values_[p.result].dtype == dtype && (p.b < 0 || values_[p.b].dtype == dtype);
    STD_TORCH_CHECK(same, "a pointwise step of several dtypes");
  }

  // The last element that the loops touch is one of the value's.
  void within(const Pointwise& p, int64_t number, const Sizes& step) const {
    const Geometry& g = values_[number];
    int64_t last = 0, end = 0;
    for (size_t d = 0; d < p.size.size(); ++d) {
      STD_TORCH_CHECK(p.size[d] >= 0 && step[d] >= 0, "a pointwise step with a negative size or step");
      if (p.size[d] == 0) return;  // nothing is touched
      last += (p.size[d] - 1) * step[d];
    }
    for (size_t d = 0; d < g.size.size(); ++d) end += (g.size[d] - 1) * g.stride[d];
    STD_TORCH_CHECK(last <= end, "a pointwise step goes beyond value ", number);
  }

  const std::vector<Geometry>& values_;
};

int64_t make(const py::list& values, std::vector<int64_t> inputs, std::vector<int64_t> outputs,
             const py::list& steps) {
  auto program = std::make_shared<Program>();
  for (const auto& each : values) {
    const auto given = each.cast<py::tuple>();
    program->values.push_back({given[0].cast<Sizes>(), given[1].cast<Sizes>(),
                               static_cast<ScalarType>(given[2].cast<int64_t>()), given[3].cast<int64_t>(),
                               given[4].cast<int64_t>()});
  }
  program->inputs = std::move(inputs);
  program->outputs = std::move(outputs);
  for (const auto& each : steps) program->steps.push_back(step(each.cast<py::tuple>()));
  Check{*program};
  return keep(std::move(program));
}

}  // namespace

void bind(py::module_& module) {
  module.def("make_program", &make, py::arg("values"), py::arg("inputs"), py::arg("outputs"), py::arg("steps"));
  module.def("program_peak", [](int64_t number) { return find(number)->peak(); }, py::arg("number"));
  module.def("program_memory", [](int64_t number) { return find(number)->memory(); }, py::arg("number"));
  module.def("idle_blocks", &idle_blocks);
  module.def("drop_idle_blocks", &drop_idle_blocks);
  module.def("drop_program", &drop, py::arg("number"));
  module.def("has_kernel", [](const std::string& name) { return find_kernel(name) != nullptr; }, py::arg("name"));
}

}  // namespace fastmaml::program
