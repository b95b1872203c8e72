"""A process in which nothing is installed that the extras bring."""

LIGHT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
"""What the extras bring is not there."""

MISSING = {
    "av", "bitsandbytes", "deepspeed", "fastapi", "jinja2", "matplotlib", "mlflow", "onnxruntime", "open_clip",
    "openai", "pandas", "peft", "ray", "sentence_transformers", "sklearn", "scipy", "sqlalchemy", "timm", "torch",
    "torchvision", "transformers",
}  # fmt: skip
