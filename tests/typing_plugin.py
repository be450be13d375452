"""What mypy has to know of this package, as a plugin (pyproject.toml, [tool.mypy]).

1. Chapters show a class in pieces: `@patch def f(self: Book, ...)`, or `Book.f = f` below a function. Each is a method of its class.
2. torch says `Tensor | Module` of any attribute of a module that nobody declared (buffers, models of other libraries). It may as well
   be a number or a function, so here it is `Any`; what a class of ours declares keeps its type.
"""
from mypy.nodes import MDEF, AssignmentStmt, CallExpr, Decorator, FuncDef, MemberExpr, NameExpr, SymbolTableNode, TupleExpr, Var
from mypy.plugin import AttributeContext, ClassDefContext, Plugin
from mypy.types import AnyType, CallableType, Type, TypeOfAny, UnboundType, UnionType, get_proper_type

MODULE = "torch.nn.modules.module.Module."


def patched(statement, cls: str):
    "(name, function, kind) of each method that this statement gives to the class; kind: method, property or classmethod."
    if isinstance(statement, Decorator):
        found = [d for d in statement.original_decorators if getattr(d.callee if isinstance(d, CallExpr) else d, "name", "") == "patch"]
        given = statement.func.unanalyzed_type
        first = given.arg_types[0] if isinstance(given, CallableType) and given.arg_types else None
        if found and isinstance(first, UnboundType) and first.name == cls:
            flags = {k for d in found if isinstance(d, CallExpr) for k in d.arg_names}
            yield statement.func.name, statement.func, "property" if "as_prop" in flags else "classmethod" if "cls_method" in flags else "method"
    if isinstance(statement, AssignmentStmt) and len(statement.lvalues) == 1:
        left, right = statement.lvalues[0], statement.rvalue
        pairs = zip(left.items, right.items) if isinstance(left, TupleExpr) and isinstance(right, TupleExpr) else [(left, right)]
        for to, value in pairs:
            if not (isinstance(to, MemberExpr) and isinstance(to.expr, NameExpr) and to.expr.name == cls): continue
            kind = value.callee.name if isinstance(value, CallExpr) and isinstance(value.callee, NameExpr) else "method"
            yield to.name, value.args[0].name if isinstance(value, CallExpr) else getattr(value, "name", ""), kind


def add_patched(ctx: ClassDefContext) -> None:
    info, api = ctx.cls.info, ctx.api
    body = api.modules[info.module_name].defs
    functions = {f.name: f for d in body if isinstance(f := d.func if isinstance(d, Decorator) else d, FuncDef)}
    for statement in body:
        for name, function, kind in patched(statement, info.name):
            function = functions.get(function) if isinstance(function, str) else function
            if function is None or name in info.names and not info.names[name].plugin_generated: continue
            analyzed: Type | None = AnyType(TypeOfAny.special_form)
            if isinstance(function.unanalyzed_type, CallableType):
                analyzed = api.anal_type(function.unanalyzed_type.copy_modified(name=name))
                if analyzed is None:
                    api.defer(); continue
            var = Var(name, get_proper_type(analyzed))
            var.info, var._fullname, var.is_initialized_in_class, var.is_ready = info, f"{info.fullname}.{name}", True, True
            var.is_property, var.is_classmethod, var.is_inferred = kind == "property", kind == "classmethod", True
            info.names[name] = SymbolTableNode(MDEF, var, plugin_generated=True)


def undeclared(ctx: AttributeContext) -> Type:
    kind = get_proper_type(ctx.default_attr_type)
    return AnyType(TypeOfAny.from_another_any, source_any=AnyType(TypeOfAny.explicit)) if isinstance(kind, UnionType) else kind


class KeepfitPlugin(Plugin):
    def get_customize_class_mro_hook(self, fullname: str):
        return add_patched if fullname.startswith("keepfit_nb.") else None

    def get_attribute_hook(self, fullname: str):
        return undeclared if fullname.startswith(MODULE) else None


def plugin(version: str) -> type[Plugin]: return KeepfitPlugin
