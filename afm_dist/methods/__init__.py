"""The methods of compression, one folder a family. A folder is found by being here: it registers itself.

Each holds its config (what a plan says), its construction, its modules, what it predicts and what it tells
reports. To add one, copy a folder; nothing else is edited.
"""
