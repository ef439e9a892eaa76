"""Conversion of source tables (Synthea, OMOP, eICU, plain CSV) to MEDS data sets by MEDS-Extract."""
