"Packaging: every fact comes from settings.ini; data/ and nbs/ travel inside the wheel."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
facts = ini["DEFAULT"]
lines = lambda key: [line.strip() for line in facts[key].splitlines() if line.strip()]

name, nbs, data = facts["lib_name"], facts["nbs_path"], facts["data_path"]
packages = {name: facts["lib_path"], f"{name}.nbs": nbs, f"{name}.nbs.profiles": f"{nbs}/profiles", f"{name}.data": data}
setup(name=name, version=facts["version"], description=facts["description"], license=facts["license"],
      keywords=facts["keywords"], author=facts["author"], python_requires=f">={facts['min_python']}",
      long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
      long_description_content_type="text/markdown", packages=list(packages), package_dir=packages,
      package_data={f"{name}.nbs": ["*.ipynb"], f"{name}.nbs.profiles": ["*.yaml"], f"{name}.data": ["**/*"]},
      install_requires=lines("requirements"), extras_require={"dev": lines("dev_requirements")},
      entry_points={"console_scripts": lines("console_scripts")})
